// The pictures: rows that fill the width, reached by keyboard as one thing, with what is folded
// under a picture opened below its row.

import { byId, element, foreign, iconButton, plural } from "./dom.js";

const MIN_ASPECT = 0.5;
const MAX_ASPECT = 2.5;
const NUM_SKELETONS = 24;

export class Grid {
  #list = byId("grid");
  #actions;
  #width = 0;

  /** `actions`: search(hit), add(hit, weight), details(hit), pictureOf(hit, size), foldedOf(hit). */
  constructor(actions) {
    this.#actions = actions;
    this.#list.addEventListener("keydown", (event) => this.#onKey(event));
    this.#list.addEventListener("focusin", ({ target }) => this.#rove(target));
    new ResizeObserver(() => this.#onWidth()).observe(this.#list);
  }

  waiting() {
    const ghost = () => element("li.hit.ghost", { aria: { hidden: "true" } });
    this.#list.replaceChildren(...Array.from({ length: NUM_SKELETONS }, ghost));
    this.#list.ariaBusy = "true";
  }

  clear() {
    this.#list.replaceChildren();
    this.#list.ariaBusy = "false";
  }

  append(hits) {
    const isFirst = this.#pictures().length === 0;
    this.#list.append(...hits.map((hit) => this.#item(hit)));
    if (isFirst) this.#rove(this.#pictures()[0]);
    this.#list.ariaBusy = "false";
    this.#placePanels();
  }

  focusFirst() {
    this.focus(null);
  }

  /** That picture, or the first where it isn't shown. `options`: those of HTMLElement.focus. */
  focus(hit, options) {
    const item = hit && this.#list.querySelector(`[data-row="${CSS.escape(hit.row)}"]`);
    (item?.querySelector(".picture") ?? this.#pictures()[0])?.focus(options);
  }

  /** The hit that has the focus, or that one with it is folded under; null: it is elsewhere. */
  focused() {
    const item = document.activeElement?.closest("#grid .hit");
    return (item?.closest(".folded-panel")?.opener ?? item)?.hit ?? null;
  }

  #item(hit, isFolded = false) {
    const { search, add, details } = this.#actions;
    const picture = element("button.picture", { type: "button", title: "Search by this picture" });
    picture.append(this.#image(hit));
    picture.addEventListener("click", () => search(hit));
    const item = element(
      "li.hit",
      { data: { row: hit.row } },
      element(
        "div.frame",
        {},
        picture,
        element("span.similarity", { title: "Cosine similarity" }, hit.similarity.toFixed(3)),
        element(
          "div.actions",
          {},
          iconButton("plus", "More like this", () => add(hit, 1), "button"),
          iconButton("minus", "Less like this", () => add(hit, -1), "button"),
          iconButton("details", "Details", () => details(hit), "button"),
        ),
        isFolded || !hit.folded ? null : this.#foldButton(hit),
      ),
      foreign("p.caption", hit.caption ?? ""),
    );
    item.style.setProperty("--aspect", aspectOf(hit));
    for (const button of item.querySelectorAll("button")) button.tabIndex = -1;
    item.hit = hit;
    return item;
  }

  #image(hit) {
    const image = element("img", { alt: hit.caption || "no caption", loading: "lazy" });
    image.decoding = "async";
    image.onload = () => image.classList.add("loaded");
    image.onerror = () => image.closest(".frame").classList.add("broken");
    this.#actions
      .pictureOf(hit, 256)
      .then((source) => (image.src = source))
      .catch(() => image.onerror());
    return image;
  }

  // What is folded

  #foldButton(hit) {
    const id = `folded-${hit.row}`;
    const label = `${plural(hit.folded, "near copy", "near copies")} folded under this picture`;
    const button = element(
      "button.folded",
      { type: "button", title: label, aria: { label, expanded: "false", controls: id } },
      `+${hit.folded}`,
    );
    button.addEventListener("click", () => this.#toggleFolded(hit, button, id));
    return button;
  }

  #toggleFolded(hit, button, id) {
    const panel = byId(id);
    button.ariaExpanded = String(!panel);
    if (panel) return panel.remove();
    const folded = this.#actions.foldedOf(hit);
    const made = element(
      "li.folded-panel",
      { id },
      element("p", {}, foldedReason(hit, folded.length)),
      element("ul", {}, ...folded.map((one) => this.#item(one, true))),
      iconButton("close", "Fold again", () => {
        this.#toggleFolded(hit, button, id);
        button.focus();
      }),
    );
    made.opener = button.closest(".hit");
    made.opener.after(made);
    this.#placePanels();
    return made.scrollIntoView({ block: "nearest" });
  }

  /** Panels move when rows break elsewhere; a change of height alone is their own doing. */
  #onWidth() {
    if (this.#list.offsetWidth === this.#width) return;
    this.#width = this.#list.offsetWidth;
    requestAnimationFrame(() => this.#placePanels());
  }

  /** An open panel stands below the whole row of its picture, wherever rows break now. */
  #placePanels() {
    for (const panel of this.#list.querySelectorAll(".folded-panel")) {
      const { opener } = panel;
      opener.after(panel);
      panel.hidden = true; // so that it breaks no row while rows are looked at
      const items = this.#items();
      const row = items.filter((item) => item.offsetTop === opener.offsetTop);
      row.at(-1).after(panel);
      panel.hidden = false;
      const centre = opener.offsetLeft + opener.offsetWidth / 2 - this.#list.offsetLeft;
      panel.style.setProperty("--centre", `${centre}px`);
    }
  }

  // Keyboard: one stop for Tab, arrows within

  #items() {
    return [...this.#list.querySelectorAll(":scope > .hit:not(.ghost)")];
  }

  #pictures() {
    return [...this.#list.querySelectorAll(".hit:not(.ghost) .picture")];
  }

  /** Only the buttons of the picture that has the focus, or had it last, are stops for Tab. */
  #rove(target) {
    const item = target?.closest(".hit");
    if (!item) return;
    for (const button of this.#list.querySelectorAll(".hit button[tabindex='0']")) {
      button.tabIndex = -1;
    }
    for (const button of item.querySelectorAll("button")) button.tabIndex = 0;
  }

  #onKey(event) {
    const item = event.target.closest(".hit");
    if (!item?.hit || event.ctrlKey || event.metaKey || event.altKey) return;
    const { add, details } = this.#actions;
    const pictures = this.#pictures();
    const place = pictures.indexOf(item.querySelector(".picture"));
    const go = (to) => pictures[Math.max(0, Math.min(pictures.length - 1, to))].focus();
    const keys = {
      ArrowLeft: () => go(place - 1),
      ArrowRight: () => go(place + 1),
      ArrowUp: () => neighbour(pictures, place, -1)?.focus(),
      ArrowDown: () => neighbour(pictures, place, 1)?.focus(),
      Home: () => go(0),
      End: () => go(pictures.length - 1),
      i: () => details(item.hit),
      "+": () => add(item.hit, 1),
      "-": () => add(item.hit, -1),
      f: () => item.querySelector(".folded")?.click(),
    };
    if (!Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  }
}

/** The picture nearest in the next row of that direction. */
function neighbour(pictures, place, direction) {
  const here = pictures[place].getBoundingClientRect();
  const centre = here.left + here.width / 2;
  let best = null;
  let row = null;
  for (let at = place + direction; at >= 0 && at < pictures.length; at += direction) {
    const box = pictures[at].getBoundingClientRect();
    if (Math.abs(box.top - here.top) < 1) continue;
    row ??= box.top;
    if (Math.abs(box.top - row) >= 1) break;
    const distance = Math.abs(box.left + box.width / 2 - centre);
    if (best === null || distance < best.distance) best = { distance, picture: pictures[at] };
  }
  return best?.picture;
}

function aspectOf({ width, height }) {
  const aspect = width > 0 && height > 0 ? width / height : 1;
  return Math.min(MAX_ASPECT, Math.max(MIN_ASPECT, aspect));
}

export function foldedReason(hit, num) {
  const rest = hit.folded > num ? `; ${num} of them are shown` : "";
  return (
    `${plural(hit.folded, "picture is", "pictures are")} folded here: the same picture again, or ` +
    `nearly so (linked by cosines above 0.94 between embeddings)${rest}. The one that fits the query ` +
    `best stands for them; switch off “Hide (near) duplicate images” to see all in the grid.`
  );
}
