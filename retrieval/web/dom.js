// Elements from data. Whatever comes from a corpus becomes a text node or an attribute's value,
// never markup: this is the only place where elements are made.

/** element("a.quiet", {href, onclick, aria: {label}}, "text", child, ...) */
export function element(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  made.classList.add(...classes);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "aria") {
      for (const [name, text] of Object.entries(value)) made.setAttribute(`aria-${name}`, text);
    } else if (key === "data") {
      Object.assign(made.dataset, value);
    } else if (key === "role" || key === "for") {
      made.setAttribute(key, value);
    } else {
      made[key] = value;
    }
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows only an icon; its label is read out and shown on hover. */
export function iconButton(name, label, onclick, tag = "button.quiet") {
  return element(tag, { type: "button", title: label, onclick, aria: { label } }, icon(name));
}

/** Text of a stranger's: its direction is its own, and can't reach the text around it. */
export function foreign(tag, text, properties = {}) {
  return element(tag, { ...properties, dir: "auto" }, text);
}

/** An address as a link that tells the other side nothing; as text if a browser shouldn't go. */
export function outwardLink(address, label = address) {
  if (!/^https?:\/\//i.test(address)) return foreign("span.address", label);
  const rel = "noreferrer noopener nofollow";
  return foreign("a.address", label, { href: address, target: "_blank", rel });
}

/** Of bytes, a promise of what an <img> shows. */
export function asDataUrl(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });
}

export const byId = (id) => document.getElementById(id);

export const plural = (num, one, many = `${one}s`) =>
  `${num.toLocaleString("en")} ${num === 1 ? one : many}`;

let toastTimer;

/** A line that comes and goes, read out by screen readers. */
export function toast(text) {
  const line = byId("toast");
  line.textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (line.textContent = ""), 5000);
}
