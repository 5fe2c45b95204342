// The reader's choice of light or dark, before anything is painted. Loaded ahead of the modules.
"use strict";

const storedTheme = localStorage.getItem("carrara.theme");
if (storedTheme === "light" || storedTheme === "dark") {
  document.documentElement.dataset.theme = storedTheme;
}
