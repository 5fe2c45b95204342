// One picture and all that is known of it, in a dialog.

import { byId, element, foreign, icon, iconButton, outwardLink, toast } from "./dom.js";
import { foldedReason } from "./grid.js";
import { describe } from "./question.js";

const LARGE = 768;
const SHOWN_APART = new Set(["caption", "url", "uid"]);

export class Details {
  #dialog = byId("details");
  #actions;
  #hit = null;

  /** `actions`: search, add, pictureOf, foldedOf, step(hit, by), closed(hit). */
  constructor(actions) {
    this.#actions = actions;
    this.#dialog.addEventListener("close", () => actions.closed(this.#hit));
    this.#dialog.addEventListener("click", ({ target }) => {
      if (target === this.#dialog) this.#dialog.close(); // beside it
    });
    this.#dialog.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) this.#step(by);
    });
  }

  /** `asked`: {question, rank} that the picture answers. */
  show(hit, asked) {
    this.#hit = hit;
    const picture = element("img.large", { alt: hit.caption || "no caption" });
    this.#actions
      .pictureOf(hit, LARGE)
      .then((source) => (picture.src = source))
      .catch((error) => toast(error.message));
    const buttons = () => [...this.#dialog.querySelectorAll("button")];
    const focused = buttons().indexOf(document.activeElement);
    this.#dialog.replaceChildren(
      element("div.stage", {}, picture),
      element("div.facts", {}, this.#head(hit), this.#buttons(hit), ...this.#facts(hit, asked)),
    );
    if (!this.#dialog.open) this.#dialog.showModal();
    (buttons()[focused] ?? this.#dialog.querySelector(".primary")).focus();
  }

  #head(hit) {
    return element(
      "header",
      {},
      foreign("h2", hit.caption || "no caption", { id: "details-caption" }),
      element(
        "nav",
        {},
        iconButton("previous", "Previous picture", () => this.#step(-1)),
        iconButton("next", "Next picture", () => this.#step(1)),
        iconButton("close", "Close", () => this.#dialog.close()),
      ),
    );
  }

  #buttons(hit) {
    const { search, add } = this.#actions;
    const leave = (act) => ({ type: "button", onclick: () => this.#leave(act) });
    const nudge = (name, text, weight) => {
      const label = { title: `${text} like this`, aria: { label: `${text} like this` } };
      return element("button", { ...leave(() => add(hit, weight)), ...label }, icon(name), text);
    };
    return element(
      "div.row",
      {},
      element(
        "button.primary",
        leave(() => search(hit)),
        "Search by this picture",
      ),
      nudge("plus", "More", 1),
      nudge("minus", "Less", -1),
    );
  }

  #facts(hit, asked) {
    const { folded = 0 } = hit;
    return [
      element("h3", {}, "Why it is here"),
      element("p", {}, reason(hit, asked)),
      folded ? element("p", {}, foldedReason(hit, this.#actions.foldedOf(hit).length)) : null,
      element("h3", {}, "Where it comes from"),
      hit.url ? element("p", {}, outwardLink(hit.url)) : element("p", {}, "No address is known."),
      element(
        "p.hint",
        {},
        "What you see is the corpus's own copy. Nothing is asked of that ",
        "address until you follow the link, and it isn't told where you come from.",
      ),
      element("h3", {}, "What is known of it"),
      element("table", {}, element("tbody", {}, ...this.#rows(hit))),
    ].filter((part) => part !== null);
  }

  #rows(hit) {
    const others = Object.entries(hit.metadata ?? {}).filter(
      ([name, value]) => !SHOWN_APART.has(name) && value !== null && value !== "",
    );
    return [["uid", hit.uid], ...others].map(([name, value]) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, name),
        foreign("td", typeof value === "object" ? JSON.stringify(value) : String(value)),
      ),
    );
  }

  #leave(act) {
    this.#dialog.close();
    act();
  }

  #step(by) {
    this.#actions.step(this.#hit, by);
  }
}

function reason(hit, { question, rank }) {
  const what = question.modality === "text" ? "caption" : "picture";
  const place = rank ? `Number ${rank} of the answer: ` : "Folded under another picture: ";
  const filter = question.where.trim() ? ` It passes “${question.where.trim()}”.` : "";
  return (
    `${place}the cosine between “${describe(question.terms)}” and this ${what} is ` +
    `${hit.similarity.toFixed(3)}.${filter}`
  );
}
