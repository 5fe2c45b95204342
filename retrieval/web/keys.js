// Keys that work anywhere on the page, and menus that close as menus do.

import { byId } from "./dom.js";

/** Where a letter is a letter, or a dialog has keys of its own. */
const TYPED = "input:not([type=checkbox], [type=radio], [type=range]), textarea, select, dialog";

/** `onDown()`: from the query to the pictures. */
export function setUpKeys({ onDown }) {
  const words = byId("words");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isTyping = event.target.closest(TYPED);
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
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // a step in the history would be taken for another question
    byId("results").focus();
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
