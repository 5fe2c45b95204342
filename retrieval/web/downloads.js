// What is shown, taken along: as JSON, or as a selection that `pack` and `train` take.

import { byId, element, iconButton, plural, toast } from "./dom.js";
import { describe } from "./question.js";

export function downloadJson({ question, hits, folded }) {
  const asked = { ...question, terms: question.terms.map(withoutPicture) };
  const kept = hits.map(({ thumbnail: _, ...hit }) => hit);
  save("search.json", JSON.stringify({ question: asked, hits: kept, folded }, null, 2) + "\n");
}

/** Asks for a name; `service` keeps the selection where `canSave`, else a policy is downloaded. */
export function askForSelection({ question, hits, service, canSave }) {
  const dialog = byId("save");
  const name = element("input", {
    id: "save-name",
    value: suggestedName(question),
    required: true,
    pattern: "[A-Za-z0-9][A-Za-z0-9_\\-]{0,63}",
    title: "Letters, digits, _ and -",
    autocomplete: "off",
  });
  const problem = element("p.problem", { role: "alert" });
  const finish = async () => {
    if (!canSave) {
      save(`${name.value}.toml`, policyOf(question, hits));
      return `Saved ${name.value}.toml`;
    }
    const uids = hits.map((hit) => hit.uid);
    await service.saveSelection({ index: question.index, name: name.value, uids });
    return `${plural(uids.length, "sample")} saved as the selection ${name.value}`;
  };
  const form = element(
    "form",
    {},
    element(
      "header",
      {},
      element("h2", { id: "save-title" }, `${plural(hits.length, "picture")} as a selection`),
      iconButton("close", "Close", () => dialog.close()),
    ),
    element("label", { for: "save-name" }, "Name"),
    name,
    canSave
      ? element("p.hint", {}, "It is written beside the corpus, for `carrara pack` and `train`.")
      : element(
          "p.hint",
          {},
          "This service saves none (it runs without --allow-save). The file names the pictures; " +
            "with the corpus at hand, make a selection of it:",
        ),
    canSave ? null : element("code", {}, "carrara select ROOT --name NAME --policy NAME.toml"),
    problem,
    element("div.row", {}, element("button.primary", {}, canSave ? "Save" : "Download")),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      toast(await finish());
      dialog.close();
    } catch (error) {
      problem.textContent = error.message;
    }
  });
  dialog.replaceChildren(form);
  dialog.showModal();
  name.select();
}

function suggestedName(question) {
  const words =
    describe(question.terms)
      .toLowerCase()
      .match(/[a-z0-9]+/g) ?? [];
  return words.slice(0, 4).join("-") || "picked";
}

/** A policy for `carrara select --policy` that keeps these samples and nothing else. */
function policyOf(question, hits) {
  const uids = hits.map(({ uid }) => `'${uid.replaceAll("'", "''")}'`);
  return [
    `title = ${toml(`Picked on the search page: ${describe(question.terms)}`)}`,
    "signals = []",
    "",
    "[[rules]]",
    'name = "not among the pictures picked"',
    `keep = ${toml(`uid IN (${uids.join(", ")})`)}`,
    `source = ${toml(`the search page, index ${question.index}`)}`,
    "",
  ].join("\n");
}

/** JSON's strings are TOML's basic strings, but for DEL and halves of characters. */
const toml = (text) => JSON.stringify(text.toWellFormed()).replaceAll("\x7f", "\\u007f");

const withoutPicture = (term) => (term.kind === "image" ? { ...term, value: "uploaded" } : term);

function save(name, text) {
  const url = URL.createObjectURL(new Blob([text]));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
