// The query box. One plain word term lives in the box as text; all else is a row of chips, each
// with its sign, its weight and a way to take it out, and the box then adds to them.

import { byId, element, icon, iconButton } from "./dom.js";
import { parseAlgebra, typed } from "./question.js";

const STEP = 0.1;

export class TermBox {
  #terms = null;
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
        this.#change(this.#terms.slice(0, -1));
      }
    });
    this.#words.addEventListener("input", () => this.#showClear());
  }

  /** What is typed and not yet asked stays, as long as the terms do. */
  show(terms) {
    if (terms === this.#terms) return;
    this.#terms = terms;
    byId("terms").replaceChildren(...(this.#hasChips ? terms.map(this.#chip, this) : []));
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
    this.#change(this.#hasChips ? [...this.#terms, ...added] : added);
  }

  #change(terms) {
    this.#onChange(terms);
  }

  #chip(term, place) {
    const with_ = (change) =>
      this.#change(this.#terms.map((one, at) => (at === place ? { ...one, ...change } : one)));
    const name = nameOf(term);
    const sign = term.weight < 0 ? "minus" : "plus";
    const weight = element("input.weight", {
      type: "number",
      min: STEP,
      max: 10,
      step: STEP,
      value: Math.abs(term.weight),
      title: "Weight",
      aria: { label: `Weight of ${name}` },
      onchange: ({ target }) => {
        const size = Math.min(10, Math.max(STEP, Number(target.value) || 1));
        with_({ weight: Math.sign(term.weight) * size });
      },
      onkeydown: (event) => {
        if (event.key !== "Enter") return;
        event.preventDefault(); // or the form would be sent, with the old weight
        event.target.blur();
      },
    });
    return element(
      `li.chip.${sign}`,
      {},
      element(
        "button.sign",
        {
          type: "button",
          title: term.weight < 0 ? "Subtracted: add it instead" : "Added: subtract it instead",
          aria: { label: `${term.weight < 0 ? "Add" : "Subtract"} ${name} instead` },
          onclick: () => with_({ weight: -term.weight }),
        },
        icon(sign),
      ),
      this.#face(term, name),
      weight,
      iconButton("close", `Take out ${name}`, () => {
        this.#change(this.#terms.filter((_, at) => at !== place));
        this.#words.focus();
      }),
    );
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
