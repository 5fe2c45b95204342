// The search page: a question in the address bar, its answer below.
//
// Every change of the question goes through `ask`, which writes the link, asks the service and
// shows the answer. Answers are kept for a while, so that going back is at once and in place.

import { Details } from "./details.js";
import { byId, toast } from "./dom.js";
import { askForSelection, downloadJson } from "./downloads.js";
import { Grid } from "./grid.js";
import { setUpKeys } from "./keys.js";
import { askForKey, Options } from "./options.js";
import { acceptPictures } from "./pictures.js";
import { DISPLAY, describe, fromLink, toLink, toRequest } from "./question.js";
import { Service, ServiceError } from "./service.js";
import { tellAnswer, tellProblem, tellStart, tellWaiting } from "./telling.js";
import { TermBox } from "./terms.js";

const NUM_KEPT_ANSWERS = 20;

let question = fromLink(location.search, history.state?.pictures);
let service = null;
let config = {};
let indices = [];
let answer = null; // of the question shown: {hits, folded, hidden, notes, copy, cursor, scroll, left}
let growing = null; // the answer whose next page is under way
let asking = new AbortController();
const answers = new Map(); // by link, oldest first

// The parts of the page

const pictureAction = {
  search: ({ uid }) => ask({ terms: [{ kind: "uid", value: uid, weight: 1 }] }),
  add: ({ uid }, weight) =>
    ask({ terms: [...question.terms, { kind: "uid", value: uid, weight }] }),
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

// Asking

/** Changes the question. What changes only the display is no step in the history. */
function ask(change) {
  leave();
  question = { ...question, ...change, lacksPicture: false };
  const isNew = Object.keys(change).some((name) => !DISPLAY.has(name));
  const link = toLink(question);
  const kept = { pictures: question.terms.filter(isUpload).map((term) => term.value) };
  if (isNew && link !== location.search) history.pushState(kept, "", link);
  else history.replaceState(kept, "", link);
  if (!isNew) {
    showControls();
    return;
  }
  answers.delete(keyOf()); // asked anew: the corpus may have changed
  if ("back" in change) connect();
  else search();
}

/** Notes where the reader is in the answer shown, for coming back to it. */
function leave() {
  if (!answer) return;
  answer.scroll = scrollY;
  answer.left = grid.focused();
}

const isUpload = ({ kind }) => kind === "image";

/** Asks the service what it has, then the question. */
async function connect() {
  box.drawAnew();
  let asked;
  try {
    asked = service = new Service(question.back);
    byId("key").value = asked.key;
    const found = await Promise.all([asked.indices(), asked.config()]);
    if (asked !== service) return; // another was chosen meanwhile
    [indices, config] = found;
    if (!indices.length) throw new ServiceError(`${asked.base} has no index.`);
  } catch (error) {
    if (asked && asked !== service) return;
    indices = [];
    showControls();
    fail(error, connect);
    return;
  }
  search();
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
  if (!indices.length) return connect();
  if (!question.terms.length) {
    answer = null;
    grid.clear();
    return tellStart(question, indexAsked());
  }
  const wasInGrid = byId("grid").contains(document.activeElement);
  const kept = answers.get(keyOf());
  if (kept) {
    showAnswer(kept);
    if (wasInGrid) grid.focus(kept.left, { preventScroll: true });
    return;
  }
  answer = null;
  grid.waiting();
  tellWaiting();
  scrollTo(0, 0);
  try {
    const found = await askService(null, signal);
    showAnswer({ ...found, scroll: 0 });
    if (wasInGrid) grid.focusFirst();
  } catch (error) {
    if (error.name === "AbortError") return;
    fail(error, search);
  }
}

const indexAsked = () => indices.find(({ name }) => name === question.index);

async function askService(cursor, signal) {
  const index = indexAsked();
  if (!index) {
    const names = indices.map(({ name }) => name).join(", ");
    throw new ServiceError(`No index is called ${question.index}; this service has ${names}.`);
  }
  const request = toRequest(question, index, {
    cursor,
    inline: service.needsInline || config.inlineThumbnails,
  });
  const found = await service.search(request, signal);
  const { hits, folded = {}, hidden = {}, notes = [], copy = null } = found;
  return { hits, folded, hidden, notes, copy, cursor: found.cursor ?? null };
}

async function more() {
  if (!answer?.cursor || growing === answer) return;
  const { signal } = asking;
  const grown = answer;
  growing = grown;
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
    tellAnswer(question, grown); // the notes stay the first page's
    watchEnd();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ServiceError)) throw error;
    byId("more").textContent = `${error.message} Try again`;
    toast(error.message); // which is read out
  } finally {
    if (growing === grown) growing = null;
  }
}

// Showing

function showControls() {
  options.show(question, indices, indexAsked());
  box.show(question.terms);
  document.title = question.terms.length ? `${describe(question.terms)} · Carrara` : "Carrara";
}

function showAnswer(found) {
  answer = found;
  keep(found);
  grid.clear();
  grid.append(found.hits);
  tellAnswer(question, found);
  watchEnd();
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

/** More is asked for before the end is in view. */
const nearEnd = new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && more(), {
  rootMargin: "1200px",
});

/** Observed anew, for an end that is in view already would not be told of again. */
function watchEnd() {
  nearEnd.unobserve(byId("foot"));
  nearEnd.observe(byId("foot"));
}

function fail(error, again) {
  if (!(error instanceof ServiceError)) throw error;
  grid.clear();
  tellProblem(error.message, again);
  if (error.status === 401) askForKey();
}

// Buttons and history

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

setUpKeys({ onDown: () => grid.focusFirst() });
acceptPictures({
  onPicture: (term, how) => {
    const terms = how === "add" ? question.terms : [];
    ask({ terms: [...terms, { ...term, weight: 1 }] });
  },
  hasQuery: () => question.terms.length > 0,
});

history.scrollRestoration = "manual";
addEventListener("popstate", ({ state }) => {
  leave();
  const { back } = question;
  question = fromLink(location.search, state?.pictures);
  if (question.back === back) search();
  else connect();
});

connect();
