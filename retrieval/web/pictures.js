// A picture to search by: uploaded, pasted or dropped, as a file or as an address.

import { asDataUrl, byId, toast } from "./dom.js";

/** Sent as they are up to this size; larger ones, and other formats, go as a JPEG of MAX_SIDE. */
const MAX_BYTES = 1_000_000;
const MAX_SIDE = 768; // encoders look at 224 to 448 pixels
const PLAIN_TYPES = new Set(["image/jpeg", "image/png", "image/webp"]);

/** `onPicture({kind, value}, how)`: how is "replace" or "add". `hasQuery()`: is there one? */
export function acceptPictures({ onPicture, hasQuery }) {
  const menu = byId("by-picture");
  const how = () => (byId("add-picture").checked && hasQuery() ? "add" : "replace");
  const takeFile = async (file, mode) => {
    menu.open = false;
    try {
      onPicture({ kind: "image", value: await toBase64(file) }, mode);
    } catch {
      toast(`${file.name || "What was given"} is not a picture that this browser can read.`);
    }
  };
  const takeAddress = (text, mode) => {
    menu.open = false;
    onPicture({ kind: "image_url", value: text }, mode);
  };

  byId("upload").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) takeFile(target.files[0], how());
    target.value = "";
  });

  const address = byId("picture-url");
  const useAddress = () => {
    const text = address.value.trim();
    if (!/^https?:\/\/\S+$/i.test(text)) return toast("An address begins with http:// or https://");
    takeAddress(text, how());
    address.value = "";
  };
  byId("picture-url-go").addEventListener("click", useAddress);
  address.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    useAddress();
  });

  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(isPicture);
    if (!file) return;
    event.preventDefault();
    takeFile(file, how());
  });
  acceptDrops({ takeFile, takeAddress, hasQuery });
}

function acceptDrops({ takeFile, takeAddress, hasQuery }) {
  const overlay = byId("drop");
  let inside = 0; // a dragenter and a dragleave for each element on the way
  const hide = () => {
    inside = 0;
    overlay.hidden = true;
  };
  const carriesPicture = ({ dataTransfer }) =>
    ["Files", "text/uri-list"].some((type) => dataTransfer.types.includes(type));

  document.addEventListener("dragenter", (event) => {
    if (!carriesPicture(event)) return;
    inside += 1;
    overlay.hidden = false;
    overlay.querySelector("[data-drop=add]").hidden = !hasQuery();
  });
  document.addEventListener("dragleave", () => {
    if (inside && --inside === 0) hide();
  });
  document.addEventListener("dragover", (event) => {
    if (carriesPicture(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!carriesPicture(event)) return;
    event.preventDefault();
    hide();
    const mode = event.target.dataset?.drop ?? "replace";
    const file = [...event.dataTransfer.files].find(isPicture);
    const [address] = event.dataTransfer.getData("text/uri-list").split(/\r?\n/);
    if (file) takeFile(file, mode);
    else if (/^https?:/i.test(address)) takeAddress(address, mode);
    else toast("That is not a picture.");
  });
}

const isPicture = (file) => file.type.startsWith("image/");

/** Base64 without a prefix. What is sent anew has lost where and when it was taken. */
async function toBase64(file) {
  const plain = PLAIN_TYPES.has(file.type) && file.size <= MAX_BYTES;
  const address = await asDataUrl(plain ? file : await smaller(file));
  return address.slice(address.indexOf(",") + 1);
}

async function smaller(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // under what is transparent, as the corpus's own pictures are
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
}
