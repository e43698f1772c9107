// The tab of duplicates: groups of images, which one of each to keep, and why.

import { element, fetched, pathOf, text, thumbnail } from "./common.js";

const DEFAULT_THRESHOLD = 0.95;
const WAIT_SECONDS = 2;

let running = null; // what ends the request that is under way
let shown = 0; // groups

export function addressOfDuplicates() {
  const query = new URLSearchParams({ view: "duplicates" });
  const threshold = element("threshold").valueAsNumber;
  if (threshold && threshold !== DEFAULT_THRESHOLD) query.set("threshold", threshold);
  if (element("across").value) query.set("across", element("across").value);
  return `?${query}`;
}

export function showDuplicates(given) {
  element("threshold").value = Number(given.get("threshold")) || DEFAULT_THRESHOLD;
  element("across").value = given.get("across") || "";
  if (element("across").selectedIndex < 0) element("across").value = "";
  return load(0);
}

async function load(offset) {
  if (running) running.abort();
  const mine = running = new AbortController();
  const list = element("groups");
  list.setAttribute("aria-busy", "true");
  element("groups-problem").hidden = true;
  element("more-groups").hidden = true;
  try {
    const answer = await asked(offset, mine.signal);
    if (offset === 0) list.replaceChildren();
    list.append(...answer.groups.map((group, n) => groupOf(group, offset + n + 1)));
    shown = offset + answer.groups.length;
    element("groups-status").textContent = described(answer);
    element("more-groups").hidden = shown >= answer.group_count;
  } catch (error) {
    if (error.name === "AbortError") return;
    if (offset === 0) list.replaceChildren();
    element("groups-status").textContent = "";
    element("groups-problem").hidden = false;
    element("groups-problem").textContent = error.message;
  } finally {
    if (running === mine) list.removeAttribute("aria-busy");
  }
}

async function asked(offset, signal) {
  const query = new URLSearchParams({ threshold: element("threshold").value, offset });
  if (element("across").value) query.set("across", element("across").value);
  for (;;) {
    element("groups-status").textContent = "Comparing the images…";
    const response = await fetched(`duplicates?${query}`, { signal });
    if (response.status !== 202) return response.json();
    await new Promise((resolve) => { setTimeout(resolve, 1000 * WAIT_SECONDS); });
    signal.throwIfAborted();
  }
}

const counted = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

function described(answer) {
  if (!answer.group_count) return `No duplicates among ${counted(answer.images, "image")}.`;
  const parts = [`${counted(answer.all.groups, "group")} of ${counted(answer.all.images, "image")}`,
    `${answer.all.surplus.toLocaleString("en")} besides one of each`,
    `${counted(answer.exact.groups, "group")} with the same bytes`];
  return parts.join(" · ");
}

function groupOf(group, number) {
  const entry = document.createElement("li");
  const title = document.createElement("h3");
  title.textContent = `${number}: ${counted(group.count, "image")}`;
  const facts = group.kind === "exact" ? "the same bytes" : `least similarity ${group.least_similarity.toFixed(3)}`;
  const head = document.createElement("div");
  head.className = "line";
  head.append(title, text("soft", facts));
  const images = document.createElement("ol");
  images.append(...group.images.map((image, n) => imageOf(image, n === 0 ? group.why : null)));
  entry.append(head, images);
  const hidden = group.count - group.images.length;
  if (hidden) entry.append(text("soft", `and ${counted(hidden, "more image")}`));
  return entry;
}

function imageOf(image, why) {
  const link = document.createElement("a");
  link.href = `?${new URLSearchParams({ uri: image.uri })}`;
  link.title = image.uri;
  const fact = why === null ? image.similarity.toFixed(3) : `Keep: ${why}`;
  const size = `${image.width} × ${image.height}, ${Math.max(1, Math.round(image.size / 1024)).toLocaleString("en")} KiB`;
  const told = text(why === null ? "label" : "keep", fact);
  link.append(thumbnail(image.uri), told, text("file", image.uri), text("label", size));
  const label = why === null ? `similarity ${fact}` : fact;
  link.setAttribute("aria-label", `${image.uri}, ${size}, ${label}. Search by this picture`);
  const entry = document.createElement("li");
  entry.append(link);
  return entry;
}

element("duplicates-form").addEventListener("submit", (event) => event.preventDefault());
for (const name of ["threshold", "across"]) {
  element(name).addEventListener("change", () => {
    if (!element("threshold").checkValidity()) {
      element("threshold").reportValidity();
      return;
    }
    history.replaceState(history.state, "", addressOfDuplicates());
    load(0);
  });
}
element("more-groups").addEventListener("click", () => load(shown));
