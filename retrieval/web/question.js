// What is asked: terms and switches; as the service takes it, and as a permalink keeps it.
//
// A term is {kind: "text" | "image" | "image_url" | "uid", value, weight}; an image's value is
// base64 and too long for a link, which then keeps only its place.

export const PAGE_SIZE = 40;

/** The switches, and what they are where a link says nothing. Links write what differs. */
export const DEFAULTS = {
  back: "",
  index: "",
  modality: "image",
  multilingual: false,
  safe: true,
  uniqueUrls: true,
  dedup: true,
  diversify: 0,
  where: "",
  captions: true,
  fullCaptions: false,
  similarities: false,
};

/** Those that change only how an answer is shown. */
export const DISPLAY = new Set(["captions", "fullCaptions", "similarities"]);

/** Names in a link; query, imageUrl, back, index and useMclip are clip-retrieval's page's. */
const KINDS = { query: "text", imageUrl: "image_url", uid: "uid", picture: "image" };
const NAMES = { multilingual: "useMclip" };

export function toLink(question) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(DEFAULTS)) {
    if (question[name] !== value) parameters.set(NAMES[name] ?? name, String(question[name]));
  }
  for (const { kind, value } of question.terms) {
    const [name] = Object.entries(KINDS).find(([, its]) => its === kind);
    parameters.append(name, kind === "image" ? "uploaded" : value);
  }
  const weights = question.terms.map((term) => term.weight);
  if (weights.some((weight) => weight !== 1)) parameters.set("weights", weights.join(","));
  return `?${parameters}`;
}

/** `pictures`: the uploaded ones, in order, if this browser still has them. */
export function fromLink(search, pictures = []) {
  const parameters = new URLSearchParams(search);
  const question = { ...DEFAULTS, terms: [] };
  for (const [name, fallback] of Object.entries(DEFAULTS)) {
    const text = parameters.get(NAMES[name] ?? name);
    if (text === null) continue;
    question[name] =
      typeof fallback === "boolean"
        ? text === "true" || text === "1"
        : typeof fallback === "number"
          ? Number(text) || fallback
          : text;
  }
  if (question.modality !== "text") question.modality = "image";
  const weights = (parameters.get("weights") ?? "").split(",").map(Number);
  const left = [...pictures];
  let place = 0;
  for (const [name, text] of parameters) {
    if (!(name in KINDS) || text === "") continue;
    const value = name === "picture" ? left.shift() : text;
    const weight = weights[place++] || 1;
    if (value === undefined) question.lacksPicture = true;
    else question.terms.push({ kind: KINDS[name], value, weight });
  }
  return question;
}

/** The body of POST /v1/search. `index`: what the service says of it. */
export function toRequest(question, index, { cursor, inline }) {
  const body = {
    index: question.index,
    terms: question.terms.map(({ kind, value, weight }) => ({ [kind]: value, weight })),
    k: PAGE_SIZE,
    modality: question.modality,
    safe: question.safe && index.safe,
    dedup: question.dedup,
    unique_urls: question.uniqueUrls,
    multilingual: question.multilingual && index.multilingual,
    diversify: question.diversify,
  };
  if (question.where.trim()) body.where = question.where.trim();
  if (cursor) body.cursor = cursor;
  body.with = [...(inline ? ["thumbnail"] : []), ...(isOnePicture(question) ? ["copy"] : [])];
  return body;
}

/** A stranger's picture and nothing else: the service can tell whether the corpus has it. */
function isOnePicture({ terms: [term, ...others], modality }) {
  const isPicture = term.kind === "image" || term.kind === "image_url";
  return isPicture && others.length === 0 && term.weight > 0 && modality === "image";
}

/** What a person reads: cat + 0.5 pool - a picture. */
export function describe(terms) {
  return terms
    .map(({ kind, value, weight }, place) => {
      const sign = weight < 0 ? "− " : place ? "+ " : "";
      const factor = Math.abs(weight) === 1 ? "" : `${Math.abs(weight)} × `;
      return `${sign}${factor}${kind === "text" ? value : "a picture"}`;
    })
    .join(" ");
}

// The grammar of retrieval/asking/algebra.py

const SIGN = /(?:^|(?<=\s))[+-](?=\s|$)/;
const WEIGHT = /^(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\*(?=\S)/;
const QUOTED = /^"((?:[^"\\]|\\.)*)"(?=\s+[+-](?:\s|$)|\s*$)/s;
const ADDRESS = /^https?:\/\/\S+$/;
const UID = "uid:";

/** Terms of what was typed: `cat + 0.5*dog - "black - white"`. Signs stand apart from words. */
export function parseAlgebra(text) {
  const terms = [];
  let rest = text.trim();
  while (rest) {
    const sign = SIGN.exec(rest)?.index === 0 ? rest[0] : "";
    rest = rest.slice(sign.length).trimStart();
    const factor = WEIGHT.exec(rest);
    rest = rest.slice(factor ? factor[0].length : 0);
    const weight = (sign && sign !== "+" ? -1 : 1) * Number(factor?.[1] ?? 1);
    const quoted = QUOTED.exec(rest);
    const end = quoted ? quoted[0].length : (SIGN.exec(rest)?.index ?? rest.length);
    const words = rest.slice(0, end).trim();
    if (quoted) terms.push({ kind: "text", value: quoted[1].replace(/\\(.)/gs, "$1"), weight });
    else if (words) terms.push({ ...operand(words), weight });
    rest = rest.slice(end).trimStart();
  }
  return terms.filter(({ value }) => value.trim() !== "");
}

/** Words as they are typed: in quotes if they would else be read as more than words. */
export function typed(words) {
  const [first, ...others] = parseAlgebra(words);
  const isPlain = !others.length && first?.kind === "text" && first.value === words;
  return isPlain ? words : `"${words.replace(/(["\\])/g, "\\$1")}"`;
}

function operand(words) {
  if (ADDRESS.test(words)) return { kind: "image_url", value: words };
  if (words.startsWith(UID)) return { kind: "uid", value: words.slice(UID.length) };
  return { kind: "text", value: words };
}
