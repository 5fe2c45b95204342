// The switches beside the results, as controls that show a question and change it.

import { byId, element, plural } from "./dom.js";
import { DISPLAY } from "./question.js";

const SIZE = "carrara.size";
const THEME = "carrara.theme";
const CLOSED = "carrara.options";

export class Options {
  #onChange;
  #switches = [...document.querySelectorAll("[data-switch]")];

  /** `onChange(change)`: of the question; `onKey(key)`: another key for the service. */
  constructor({ onChange, onKey }) {
    this.#onChange = onChange;
    for (const box of this.#switches) {
      box.addEventListener("change", () => onChange({ [box.dataset.switch]: box.checked }));
    }
    for (const radio of document.getElementsByName("modality")) {
      radio.addEventListener("change", () => onChange({ modality: radio.value }));
    }
    const take = (id, change) =>
      byId(id).addEventListener("change", ({ target }) => onChange(change(target.value)));
    take("index", (index) => ({ index }));
    take("back", (back) => ({ back: back.trim(), index: "" }));
    take("where", (where) => ({ where: where.trim() }));
    take("diversify", (value) => ({ diversify: Number(value) }));
    byId("diversify").addEventListener("input", ({ target }) => showVariety(Number(target.value)));
    byId("key").addEventListener("change", ({ target }) => onKey(target.value));
    setUpSize();
    setUpTheme();
    setUpSidebar();
  }

  /** `index`: what the service says of the one asked, or undefined. */
  show(question, indices, index) {
    for (const box of this.#switches) box.checked = question[box.dataset.switch];
    for (const radio of document.getElementsByName("modality")) {
      radio.checked = radio.value === question.modality;
      radio.disabled = index !== undefined && !(index.modalities ?? []).includes(radio.value);
    }
    byId("back").value = question.back;
    byId("where").value = question.where;
    byId("diversify").value = question.diversify;
    showVariety(question.diversify);
    showIndices(indices, question.index);
    allow("safe", index?.safe, "This index has no scores of safety.");
    allow("multilingual", index?.multilingual, "Its encoder has no multilingual counterpart.");
    if (index) this.#showIndex(index, question.modality);
    const list = byId("grid");
    for (const name of DISPLAY) list.classList.toggle(name, question[name]);
  }

  #showIndex(index, modality) {
    const num = plural(index.num_rows, "picture");
    byId("index-facts").textContent = [num, index.encoder, ...recalls(index, modality)].join(" · ");
    const columns = (index.columns ?? []).map((one) =>
      typeof one === "string" ? { name: one, type: "" } : one,
    );
    byId("columns").replaceChildren(...columns.map((column) => this.#column(column)));
    byId("columns-list").hidden = columns.length === 0;
  }

  #column({ name, type }) {
    const insert = () => {
      const where = byId("where");
      const text = /^[a-z_][a-z0-9_]*$/i.test(name) ? name : `"${name.replaceAll('"', '""')}"`;
      const spaced = where.value && !/[\s(]$/.test(where.value) ? ` ${text} ` : `${text} `;
      where.setRangeText(spaced, where.value.length, where.value.length, "end");
      where.focus();
    };
    const button = element("button", { type: "button", title: type, onclick: insert }, name);
    return element("li", {}, button);
  }
}

/** What the index was measured to find of what an exact search would. */
function recalls({ measured }, modality) {
  const { text, image } = measured?.[modality] ?? {};
  if (text?.recall_at_10 === undefined || image?.recall_at_10 === undefined) return [];
  const [words, pictures] = [text, image].map((one) => one.recall_at_10.toFixed(2));
  return [`recall@10 ${words} by words, ${pictures} by pictures`];
}

/** Opens the part where a key is given. */
export function askForKey() {
  setOpen(true);
  byId("connection").open = true;
  byId("key").focus();
}

function allow(name, allowed, why) {
  const box = document.querySelector(`[data-switch="${name}"]`);
  box.disabled = allowed === false;
  if (box.disabled) box.checked = false;
  box.closest("label").title = box.disabled ? why : "";
}

function showIndices(indices, chosen) {
  const option = ({ name }) => element("option", { value: name, selected: name === chosen }, name);
  byId("index").replaceChildren(...indices.map(option));
  byId("index").disabled = indices.length < 2;
}

function showVariety(value) {
  byId("diversify-value").textContent = value ? value.toFixed(1) : "off";
}

function setUpSize() {
  const slider = byId("size");
  const use = () => document.documentElement.style.setProperty("--size", `${slider.value}px`);
  slider.value = localStorage.getItem(SIZE) ?? 140;
  use();
  slider.addEventListener("input", () => {
    localStorage.setItem(SIZE, slider.value);
    use();
  });
}

/** auto -> light -> dark -> auto */
function setUpTheme() {
  const button = byId("theme");
  const root = document.documentElement;
  const label = () => {
    const text = `Light or dark: ${root.dataset.theme ?? "as the system"}`;
    button.ariaLabel = text;
    button.title = text;
  };
  button.addEventListener("click", () => {
    const next = { undefined: "light", light: "dark" }[root.dataset.theme];
    if (next) root.dataset.theme = next;
    else delete root.dataset.theme;
    localStorage.setItem(THEME, next ?? "auto");
    label();
  });
  label();
}

function setUpSidebar() {
  const isWide = matchMedia("(min-width: 60rem)");
  const restore = () => setOpen(isWide.matches && localStorage.getItem(CLOSED) !== "closed");
  byId("options-toggle").addEventListener("click", () => {
    const open = byId("options").hidden;
    setOpen(open);
    if (isWide.matches) localStorage.setItem(CLOSED, open ? "open" : "closed");
    if (open && !isWide.matches) scrollTo(0, 0);
  });
  isWide.addEventListener("change", restore);
  restore();
}

function setOpen(open) {
  byId("options").hidden = !open;
  byId("options-toggle").ariaExpanded = String(open);
}
