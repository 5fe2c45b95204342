// The service that answers: this page's own, or another whose address the reader gave.

import { asDataUrl } from "./dom.js";

/** What went wrong, in a line for people. */
export class ServiceError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const HOME = new URL(".", location.href).href;
const KEYS = "carrara.key ";

export class Service {
  /** `address` "": where the page came from. Raises ServiceError for what is no web address. */
  constructor(address) {
    const text = address.trim() || HOME;
    const url = URL.parse(text.endsWith("/") ? text : `${text}/`, HOME);
    if (!url || !/^https?:$/.test(url.protocol)) {
      throw new ServiceError(`${address}: no address of a service; expected http://… or https://…`);
    }
    this.base = url.href;
  }

  /** Kept for each service apart: a key must not reach an address that a link brought along. */
  get key() {
    return sessionStorage.getItem(KEYS + this.base) ?? "";
  }

  set key(key) {
    sessionStorage.setItem(KEYS + this.base, key);
  }

  /** Whether its pictures can't be asked for by <img>: another origin, or a key to send along. */
  get needsInline() {
    return new URL(this.base).origin !== location.origin || this.key !== "";
  }

  config(signal) {
    return this.#ask("config.json", { signal });
  }

  indices(signal) {
    return this.#ask("v1/indices", { signal });
  }

  search(body, signal) {
    return this.#ask("v1/search", { body, signal });
  }

  saveSelection(body) {
    return this.#ask("v1/selections", { body });
  }

  /** For an <img>; of another service, what it sent when asked like any other request. */
  async picture(index, uid, size) {
    const path = `v1/thumbnail/${encodeURIComponent(index)}/${encodeURIComponent(uid)}`;
    const address = new URL(`${path}?size=${size}`, this.base).href;
    if (!this.needsInline) return address;
    const answer = await this.#fetch(address, {});
    return asDataUrl(await answer.blob()); // which goes away with the <img>
  }

  async #ask(path, { body, signal }) {
    const answer = await this.#fetch(new URL(path, this.base).href, { body, signal });
    try {
      return await answer.json();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServiceError(`${this.base}: no answer that this page understands (no JSON)`);
    }
  }

  async #fetch(address, { body, signal }) {
    const headers = body ? { "Content-Type": "application/json" } : {};
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    const method = body ? "POST" : "GET";
    const credentials = "omit";
    let answer;
    try {
      const sent = body && JSON.stringify(body);
      answer = await fetch(address, { method, headers, body: sent, signal, credentials });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServiceError(`${this.base} does not answer. Is \`carrara serve\` running there?`);
    }
    if (!answer.ok) throw new ServiceError(await reason(answer), answer.status);
    return answer;
  }
}

async function reason(answer) {
  const after = answer.headers.get("Retry-After");
  const wait = answer.status === 429 && after ? ` Try again in ${after} s.` : "";
  const told = await answer.json().catch(() => null);
  return `${told?.error ?? `The service answered ${answer.status} ${answer.statusText}.`}${wait}`;
}
