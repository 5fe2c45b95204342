// What stands around the pictures: how many there are, what was folded and hidden and why; or a
// start, a problem, or that nothing was found.

import { byId, element, plural } from "./dom.js";
import { describe } from "./question.js";

const FOLDED =
  "Near copies of a picture are shown once, by the one that fits the query best. The number on " +
  "a picture says how many are folded under it; press it to see them.";
const LACKS_PICTURE =
  "The link had an uploaded picture in it, which a link can't carry: give the picture again.";

export function tellStart(question, index) {
  clear();
  const num = index ? plural(index.num_rows, "picture") : "the pictures";
  tellInMiddle(
    element("h2", {}, `Search ${num}`),
    element(
      "p",
      {},
      "By words, or by a picture: paste one, drop it here, or upload it. Then click a picture to " +
        "go on from there, or add and subtract: ",
      element("kbd", {}, "cat + 0.5*tiger - cartoon"),
    ),
    element(
      "p.hint",
      {},
      "Pictures come from this service alone. Their addresses on the web are links, and nothing " +
        "is loaded from them by itself.",
    ),
  );
  byId("notes").replaceChildren(...lacking(question));
}

export function tellWaiting() {
  clear();
  head().hidden = false;
  byId("count").textContent = "Searching…";
}

/** Again whenever another page has come. */
export function tellAnswer(question, answer) {
  const before = document.querySelector(".why");
  const wasOpen = before?.open;
  const hadFocus = before?.contains(document.activeElement);
  clear();
  head().hidden = false;
  const { hits, cursor } = answer;
  const over = question.modality === "text" ? "captions" : "pictures";
  const what = describe(question.terms);
  const num = `${hits.length.toLocaleString("en")}${cursor ? " and more" : ""}`;
  byId("count").textContent = hits.length
    ? `${num} for “${what}”, nearest ${over} first`
    : `Nothing found for “${what}”`;
  byId("notes").replaceChildren(...notesOf(question, answer));
  const why = document.querySelector(".why");
  if (why && wasOpen) why.open = true;
  if (why && hadFocus) why.querySelector("summary").focus({ preventScroll: true });
  byId("download").hidden = hits.length === 0;
  byId("more").hidden = !cursor;
  byId("more").textContent = "More";
  byId("end").hidden = Boolean(cursor) || hits.length === 0;
  if (!hits.length) tellNothing(question);
}

export function tellProblem(message, again) {
  clear();
  const retry = element("button", { type: "button", onclick: () => again() }, "Try again");
  byId("problem").replaceChildren(element("p", {}, message), retry);
}

function tellNothing({ where }) {
  const why = where.trim()
    ? `Nothing that passes “${where.trim()}” is left to show.`
    : "Nothing of this index is left to show.";
  tellInMiddle(element("h2", {}, "Nothing found"), element("p", {}, why));
}

const head = () => document.querySelector(".head");

function tellInMiddle(...parts) {
  byId("intro").replaceChildren(...parts);
  byId("intro").hidden = false;
}

function clear() {
  byId("notes").replaceChildren();
  byId("problem").replaceChildren();
  for (const part of [head(), byId("intro"), byId("more"), byId("end")]) part.hidden = true;
}

function notesOf(question, { hits, hidden, notes, copy }) {
  const verdict = copy?.is_copy
    ? `Your picture is a copy of one in the corpus: ${copy.evidence}`
    : [];
  const lines = [verdict, notes].flat().map((line) => element("p", {}, line));
  return [...whyOf(hits, hidden), ...lines, ...lacking(question)];
}

function lacking({ lacksPicture }) {
  return lacksPicture ? [element("p", {}, LACKS_PICTURE)] : [];
}

/** Nothing, or how many were folded and hidden; opened, why. */
function whyOf(hits, hidden) {
  const numFolded = hits.reduce((sum, hit) => sum + (hit.folded ?? 0), 0);
  const reasons = Object.entries(hidden).filter(([, num]) => num > 0);
  const numHidden = reasons.reduce((sum, [, num]) => sum + num, 0);
  if (!numFolded && !numHidden) return [];
  const counts = [
    ...(numFolded ? [`${plural(numFolded, "near copy", "near copies")} folded`] : []),
    ...(numHidden ? [`${numHidden.toLocaleString("en")} hidden`] : []),
  ];
  const lines = [
    ...(numFolded ? [FOLDED] : []),
    ...reasons.map(([reason, num]) => `${num.toLocaleString("en")} × ${reason}`),
  ];
  const list = element("ul", {}, ...lines.map((line) => element("li", {}, line)));
  return [element("details.why", {}, element("summary", {}, `${counts.join(", ")}: why?`), list)];
}
