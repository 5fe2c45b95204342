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
      typeof fallback === "boolean" ? text === "true" || text === "1"
      : typeof fallback === "number" ? Number(text) || fallback
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
  if (inline) body.with = ["thumbnail"];
  return body;
}

/** What a person reads: cat + 0.5 pool - a picture. */
export function describe(terms) {
  return terms
    .map(({ kind, value, weight }, place) => {
      const sign = weight < 0 ? "− " : place ? "+ " : "";
      const factor = Math.abs(weight) === 1 ? "" : `${Math.abs(weight)} `;
      return `${sign}${factor}${kind === "text" ? value : "a picture"}`;
    })
    .join(" ");
}

const OPERATOR = /(?:^|\s+)([+\-−])\s+(?=(?:[^"]*"[^"]*")*[^"]*$)/;
const FACTOR = /^(\d*\.\d+|\d+)\s*[*×]\s*|^(\d*\.\d+)\s+/;

/**
 * Terms of what was typed: `cat + 0.5 dog - "black - white"`. Signs stand apart, quotes keep text
 * together; a whole number is a weight only with a star, so that 101 dalmatians stay a hundred.
 */
export function parseAlgebra(text) {
  const [first, ...rest] = ` ${text.trim()}`.split(OPERATOR);
  const signed = [["+", first]];
  for (let place = 0; place < rest.length; place += 2) signed.push([rest[place], rest[place + 1]]);
  return signed
    .map(([sign, words]) => {
      const factor = signed.length > 1 ? FACTOR.exec(words.trim()) : null;
      const plain = words.trim().slice(factor ? factor[0].length : 0).replaceAll('"', "").trim();
      const weight = (sign === "+" ? 1 : -1) * (factor ? Number(factor[1] ?? factor[2]) : 1);
      const kind = /^https?:\/\/\S+$/i.test(plain) ? "image_url" : "text";
      return { kind, value: plain, weight };
    })
    .filter((term) => term.value !== "" && term.weight !== 0);
}
