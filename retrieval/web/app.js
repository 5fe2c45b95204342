// The search page: a question in the address bar, its answer below.
//
// Every change of the question goes through `ask`, which writes the link, asks the service and
// shows the answer. Answers are kept for a while, so that going back is at once and in place.

import { Details } from "./details.js";
import { byId, element, plural, toast } from "./dom.js";
import { askForSelection, downloadJson } from "./downloads.js";
import { Grid } from "./grid.js";
import { askForKey, Options } from "./options.js";
import { acceptPictures } from "./pictures.js";
import { DISPLAY, describe, fromLink, toLink, toRequest } from "./question.js";
import { Service, ServiceError } from "./service.js";
import { TermBox } from "./terms.js";

const NUM_KEPT_ANSWERS = 20;

let question = fromLink(location.search, history.state?.pictures);
let service = null;
let config = {};
let indices = [];
let answer = null; // {hits, folded, hidden, notes, copy, cursor, scroll} of the question shown
let asking = new AbortController();
const answers = new Map(); // by link, oldest first

// The parts of the page

const pictureAction = {
  search: ({ uid }) => ask({ terms: [{ kind: "uid", value: uid, weight: 1 }] }),
  add: ({ uid }, weight) => addTerm({ kind: "uid", value: uid, weight }),
  details: (hit) => details.show(hit, { question, rank: rankOf(hit) }),
  pictureOf: async (hit, size) =>
    hit.thumbnail && size <= 256
      ? `data:image/jpeg;base64,${hit.thumbnail}`
      : service.picture(question.index, hit.uid, size),
  foldedOf: (hit) => answer.folded[hit.uid] ?? [],
  step: (hit, by) => {
    const next = answer.hits[answer.hits.findIndex((one) => one.uid === hit.uid) + by];
    if (next) details.show(next, { question, rank: rankOf(next) });
  },
  closed: (hit) => grid.focus(hit),
};

const grid = new Grid(pictureAction);
const details = new Details(pictureAction);
const box = new TermBox({ onChange: (terms) => ask({ terms }), pictureOf: pictureOfTerm });
const options = new Options({
  onChange: (change) => ask(change),
  onKey: (key) => {
    service.key = key;
    connect();
  },
});

async function pictureOfTerm({ kind, value }) {
  if (kind === "uid") return service.picture(question.index, value, 64);
  return kind === "image" ? `data:;base64,${value}` : null;
}

const rankOf = (hit) => answer.hits.findIndex((one) => one.uid === hit.uid) + 1;

function addTerm(term) {
  ask({ terms: [...question.terms, term] });
}

// Asking

/** Changes the question. What changes only the display is no step in the history. */
function ask(change) {
  if (answer) answer.scroll = scrollY;
  question = { ...question, ...change, lacksPicture: false };
  const isNew = Object.keys(change).some((name) => !DISPLAY.has(name));
  const link = toLink(question);
  const kept = { pictures: question.terms.filter(isUpload).map((term) => term.value) };
  if (isNew && link !== location.search) history.pushState(kept, "", link);
  else history.replaceState(kept, "", link);
  if (!isNew) return showControls();
  answers.delete(keyOf()); // asked anew: the corpus may have changed
  return "back" in change ? connect() : search();
}

const isUpload = ({ kind }) => kind === "image";

/** Asks the service what it has, then the question. */
async function connect() {
  showProblem(null);
  try {
    service = new Service(question.back);
    byId("key").value = service.key;
    [indices, config] = await Promise.all([service.indices(), service.config()]);
    if (!indices.length) throw new ServiceError(`${service.base} has no index.`);
  } catch (error) {
    indices = [];
    showControls();
    return fail(error, connect);
  }
  return search();
}

async function search() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  if (!question.index && indices.length) {
    const names = indices.map(({ name }) => name);
    const named = names.includes(config.defaultIndex) ? config.defaultIndex : names[0];
    question = { ...question, index: named };
  }
  showControls();
  showProblem(null);
  if (!indices.length) return connect();
  if (!question.terms.length) return showIntro();
  const kept = answers.get(keyOf());
  if (kept) return showAnswer(kept);

  const wasInGrid = byId("grid").contains(document.activeElement);
  answer = null;
  showIntro(false);
  grid.waiting();
  scrollTo(0, 0);
  byId("count").textContent = "Searching…";
  try {
    const found = await askService(null, signal);
    showAnswer({ ...found, scroll: 0 });
    if (wasInGrid) grid.focusFirst();
  } catch (error) {
    if (error.name === "AbortError") return;
    grid.clear();
    byId("count").textContent = "";
    fail(error, search);
  }
}

async function askService(cursor, signal) {
  const index = indices.find(({ name }) => name === question.index);
  if (!index) {
    const names = indices.map(({ name }) => name).join(", ");
    throw new ServiceError(`No index is called ${question.index}; this service has ${names}.`);
  }
  const request = toRequest(question, index, { cursor, inline: service.needsInline || config.inlineThumbnails });
  const found = await service.search(request, signal);
  const { hits, folded = {}, hidden = {}, notes = [], copy = null } = found;
  return { hits, folded, hidden, notes, copy, cursor: found.cursor ?? null };
}

async function more() {
  if (!answer?.cursor || byId("more").disabled) return;
  const { signal } = asking;
  const grown = answer;
  byId("more").disabled = true;
  byId("more").textContent = "Loading more…";
  try {
    const next = await askService(grown.cursor, signal);
    grown.hits.push(...next.hits);
    Object.assign(grown.folded, next.folded);
    grown.cursor = next.cursor;
    for (const [reason, num] of Object.entries(next.hidden)) {
      grown.hidden[reason] = (grown.hidden[reason] ?? 0) + num; // told page by page
    }
    grid.append(next.hits);
    showFoot();
    showCount(); // the notes stay the first page's
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("more").textContent = `${error.message} Try again`;
  } finally {
    byId("more").disabled = false;
  }
}

// Showing

function showControls() {
  const index = indices.find(({ name }) => name === question.index);
  options.show(question, indices, index);
  box.show(question.terms);
  document.title = question.terms.length ? `${describe(question.terms)} · Carrara` : "Carrara";
}

function showAnswer(found) {
  answer = found;
  keep(found);
  showIntro(false);
  if (!found.hits.length) showNothing();
  grid.clear();
  grid.append(found.hits);
  showFoot();
  showCount();
  scrollTo(0, found.scroll);
}

function keep(found) {
  answers.delete(keyOf());
  answers.set(keyOf(), found);
  if (answers.size > NUM_KEPT_ANSWERS) answers.delete(answers.keys().next().value);
}

/** What an answer depends on: the link without what only changes the display; and the uploads. */
function keyOf() {
  const shown = Object.fromEntries([...DISPLAY].map((name) => [name, false]));
  const uploads = question.terms.filter(isUpload).map((term) => term.value);
  return JSON.stringify([toLink({ ...question, ...shown }), uploads]);
}

function showCount() {
  const { hits, cursor } = answer;
  const over = question.modality === "text" ? "captions" : "pictures";
  const num = hits.length.toLocaleString("en");
  const what = describe(question.terms);
  byId("count").textContent = hits.length
    ? `${num}${cursor ? " and more" : ""} for “${what}”, nearest ${over} first`
    : `Nothing found for “${what}”`;
  byId("notes").replaceChildren(...notesOf(answer));
  byId("download").hidden = hits.length === 0;
}

function notesOf({ hits, hidden, notes, copy }) {
  const numFolded = hits.reduce((sum, hit) => sum + (hit.folded ?? 0), 0);
  const reasons = Object.entries(hidden).filter(([, num]) => num > 0);
  const numHidden = reasons.reduce((sum, [, num]) => sum + num, 0);
  const isCopy = copy?.is_copy ? [`Your picture is a copy of one in the corpus: ${copy.evidence}`] : [];
  const lines = [...isCopy, ...notes, ...(question.lacksPicture ? [LACKS_PICTURE] : [])];
  const made = lines.map((line) => element("p", {}, line));
  if (!numFolded && !numHidden) return made;
  const folded = numFolded ? [`${plural(numFolded, "near copy", "near copies")} folded`] : [];
  const passed = numHidden ? [`${numHidden.toLocaleString("en")} hidden`] : [];
  const why = element(
    "details.why",
    {},
    element("summary", {}, `${[...folded, ...passed].join(", ")}: why?`),
    element(
      "ul",
      {},
      numFolded ? element("li", {}, FOLDED) : null,
      ...reasons.map(([reason, num]) => element("li", {}, `${num.toLocaleString("en")} × ${reason}`)),
    ),
  );
  return [why, ...made];
}

const FOLDED =
  "Near copies of a picture are shown once, by the one that fits the query best. The number on " +
  "a picture says how many are folded under it; press it to see them.";
const LACKS_PICTURE =
  "The link had an uploaded picture in it, which a link can't carry: give the picture again.";

function showFoot() {
  const { cursor, hits } = answer;
  byId("more").hidden = !cursor;
  byId("more").textContent = "More";
  byId("end").hidden = Boolean(cursor) || hits.length === 0;
  // Observed anew, for one that is in view already would not be told of again.
  nearEnd.unobserve(byId("foot"));
  nearEnd.observe(byId("foot"));
}

const nearEnd = new IntersectionObserver(
  ([{ isIntersecting }]) => isIntersecting && more(),
  { rootMargin: "1200px" },
);

function showIntro(shown = true) {
  const intro = byId("intro");
  document.querySelector(".head").hidden = shown;
  intro.hidden = !shown;
  if (!shown) return;
  answer = null;
  grid.clear();
  byId("more").hidden = true;
  byId("end").hidden = true;
  byId("notes").replaceChildren(
    ...(question.lacksPicture ? [element("p", {}, LACKS_PICTURE)] : []),
  );
  const index = indices.find(({ name }) => name === question.index);
  const num = index ? plural(index.num_rows, "picture") : "the pictures";
  intro.replaceChildren(
    element("h2", {}, `Search ${num}`),
    element("p", {}, "By words, or by a picture: paste one, drop it here, or upload it. Then click a " +
      "picture to go on from there, or add and subtract: ", element("kbd", {}, "cat + 0.5*tiger - cartoon")),
    element("p.hint", {}, "Pictures come from this service alone. Their addresses on the web are " +
      "links, and nothing is loaded from them by itself."),
  );
}

function showNothing() {
  const why = question.where.trim()
    ? `Nothing that passes “${question.where.trim()}” is left to show.`
    : "Nothing of this index is left to show.";
  byId("intro").hidden = false;
  byId("intro").replaceChildren(element("h2", {}, "Nothing found"), element("p", {}, why));
}

function fail(error, again) {
  if (!(error instanceof ServiceError)) throw error;
  document.querySelector(".head").hidden = true;
  byId("more").hidden = true;
  byId("end").hidden = true;
  showIntro(false);
  document.querySelector(".head").hidden = true;
  showProblem(error, again);
  if (error.status === 401) askForKey();
}

function showProblem(error, again) {
  const retry = () => element("button", { type: "button", onclick: () => again() }, "Try again");
  byId("problem").replaceChildren(...(error ? [element("p", {}, error.message), retry()] : []));
}

// Keys, menus, history

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    byId("words").focus();
    byId("words").select();
  } else if (event.key === "Escape" && !typing) {
    byId("words").focus();
  } else if (event.key === "ArrowDown" && event.target === byId("words")) {
    event.preventDefault();
    grid.focusFirst();
  }
});

for (const menu of document.querySelectorAll("details.menu")) {
  document.addEventListener("pointerdown", ({ target }) => {
    if (!menu.contains(target)) menu.open = false;
  });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    event.stopPropagation();
    menu.open = false;
    menu.querySelector("summary").focus();
  });
}

byId("more").addEventListener("click", more);
byId("copy-link").addEventListener("click", async () => {
  history.replaceState(history.state, "", toLink(question)); // which names the index, too
  if (!navigator.clipboard) return toast("The link is in the address bar."); // plain HTTP
  await navigator.clipboard.writeText(location.href);
  toast(question.terms.some(isUpload) ? "Copied, but for the uploaded picture." : "Link copied.");
});
byId("download-json").addEventListener("click", () => {
  byId("download").open = false;
  downloadJson({ question, hits: answer.hits, folded: answer.folded });
});
byId("download-selection").addEventListener("click", () => {
  byId("download").open = false;
  const canSave = config.allowSave === true;
  askForSelection({ question, hits: answer.hits, service, canSave });
});

acceptPictures({
  onPicture: (term, how) => {
    const terms = how === "add" ? question.terms : [];
    ask({ terms: [...terms, { ...term, weight: 1 }] });
  },
  hasQuery: () => question.terms.length > 0,
});

history.scrollRestoration = "manual";
addEventListener("popstate", ({ state }) => {
  if (answer) answer.scroll = scrollY;
  const { back } = question;
  question = fromLink(location.search, state?.pictures);
  if (question.back === back) search();
  else connect();
});

connect();
