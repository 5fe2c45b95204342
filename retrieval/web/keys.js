// Keys that work anywhere on the page, and menus that close as menus do.

import { byId } from "./dom.js";

/** `onDown()`: from the query to the pictures. */
export function setUpKeys({ onDown }) {
  const words = byId("words");
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, textarea, select, dialog");
    if (event.key === "/" && !isTyping) {
      event.preventDefault();
      words.focus();
      words.select();
    } else if (event.key === "Escape" && !isTyping) {
      words.focus();
    } else if (event.key === "ArrowDown" && event.target === words) {
      event.preventDefault();
      onDown();
    }
  });
  for (const menu of document.querySelectorAll("details.menu")) closeAsMenusDo(menu);
}

function closeAsMenusDo(menu) {
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
