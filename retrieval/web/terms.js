// The query box. One plain word term lives in the box as text; all else is a row of chips, each
// with its sign, its weight and a way to take it out, and the box then adds to them.

import { byId, element, icon, iconButton } from "./dom.js";
import { parseAlgebra, typed } from "./question.js";

const STEP = 0.1;

export class TermBox {
  #terms = null;
  #isStale = false;
  #words = byId("words");
  #onChange;
  #pictureOf;

  /** `onChange(terms)`; `pictureOf(term)`: a promise of what an <img> shows, or null. */
  constructor({ onChange, pictureOf }) {
    this.#onChange = onChange;
    this.#pictureOf = pictureOf;
    byId("search").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    byId("clear").addEventListener("click", () => {
      this.#words.value = "";
      this.#onChange([]);
      this.#words.focus();
    });
    this.#words.addEventListener("keydown", (event) => {
      const atStart = this.#words.selectionStart === 0 && this.#words.selectionEnd === 0;
      if (event.key === "Backspace" && atStart && this.#hasChips && !event.repeat) {
        this.#onChange(this.#terms.slice(0, -1));
      }
    });
    this.#words.addEventListener("input", () => this.#showClear());
  }

  /** Next time: the pictures in the chips were those of another service. */
  drawAnew() {
    this.#isStale = true;
  }

  /** What is typed and not yet asked stays, as long as the terms do. */
  show(terms) {
    if (terms === this.#terms && !this.#isStale) return;
    const list = byId("terms");
    const before = this.#hasChips && !this.#isStale ? this.#terms : [];
    const hadFocus = list.contains(document.activeElement);
    this.#terms = terms;
    this.#isStale = false;
    if (this.#hasChips && areSameThings(before, terms)) {
      terms.forEach((term, place) => weigh(list.children[place], term));
    } else {
      list.replaceChildren(...(this.#hasChips ? terms.map(this.#chip, this) : []));
      if (hadFocus) this.#words.focus();
    }
    this.#words.value = this.#hasChips || !terms.length ? "" : typed(terms[0].value);
    this.#words.placeholder = this.#hasChips
      ? "add words, or - words to subtract"
      : "Search by words, or drop a picture";
    this.#showClear();
  }

  get #hasChips() {
    const [first, ...rest] = this.#terms ?? [];
    if (first === undefined) return false;
    return rest.length > 0 || first.kind !== "text" || first.weight !== 1;
  }

  #showClear() {
    byId("clear").hidden = this.#words.value === "" && !this.#terms?.length;
  }

  #submit() {
    const added = parseAlgebra(this.#words.value);
    this.#onChange(this.#hasChips ? [...this.#terms, ...added] : added);
  }

  #chip(term, place) {
    const weightNow = () => this.#terms[place].weight;
    const setWeight = (weight) => {
      if (weight === weightNow()) return;
      this.#onChange(this.#terms.map((one, at) => (at === place ? { ...one, weight } : one)));
    };
    const name = nameOf(term);
    const use = (input) => {
      const size = Math.min(10, Math.max(STEP, Number(input.value) || 1));
      input.value = size;
      setWeight(weightNow() < 0 ? -size : size);
    };
    const weight = element("input.weight", {
      type: "number",
      min: STEP,
      max: 10,
      step: STEP,
      title: "Weight",
      aria: { label: `Weight of ${name}` },
      onchange: ({ target }) => use(target),
      onkeydown: (event) => {
        if (event.key !== "Enter") return;
        event.preventDefault(); // or the form would be sent, with the old weight
        use(event.target);
      },
    });
    const flip = () => setWeight(-weightNow());
    const chip = element(
      "li",
      {},
      element("button.sign", { type: "button", onclick: flip }),
      this.#face(term, name),
      weight,
      iconButton("close", `Take out ${name}`, () => {
        this.#onChange(this.#terms.filter((_, at) => at !== place));
        this.#words.focus();
      }),
    );
    weigh(chip, term);
    return chip;
  }

  #face(term, name) {
    if (term.kind === "text") return element("span.words", { dir: "auto" }, term.value);
    const picture = element("img", { alt: name, title: name });
    this.#pictureOf(term)
      .then((source) => source && (picture.src = source))
      .catch(() => {}); // its name stands in; the search itself will say what is wrong
    if (term.kind !== "image_url") return picture;
    return element("span.words", { dir: "auto", title: term.value }, shortAddress(term.value));
  }
}

/** Shows a term's weight; the rest of its chip stays as it is, and keeps the focus. */
function weigh(chip, term) {
  const isMinus = term.weight < 0;
  const sign = chip.querySelector(".sign");
  chip.className = `chip ${isMinus ? "minus" : "plus"}`;
  sign.title = isMinus ? "Subtracted: add it instead" : "Added: subtract it instead";
  sign.ariaLabel = `${isMinus ? "Add" : "Subtract"} ${nameOf(term)} instead`;
  sign.replaceChildren(icon(isMinus ? "minus" : "plus"));
  chip.querySelector(".weight").value = Math.abs(term.weight);
}

/** Whatever their weights. */
function areSameThings(terms, others) {
  const isSame = ({ kind, value }, at) => kind === others[at].kind && value === others[at].value;
  return terms.length === others.length && terms.every(isSame);
}

function nameOf({ kind, value }) {
  if (kind === "text") return value;
  if (kind === "image_url") return `the picture at ${value}`;
  return kind === "uid" ? "a picture of the corpus" : "your picture";
}

/** host/…/file of an address; a picture of the web isn't loaded only to be shown in a chip. */
function shortAddress(text) {
  const url = URL.parse(text);
  if (!url) return text;
  const file = url.pathname.split("/").pop();
  return file ? `${url.host}/…/${file}` : url.host;
}
