// The page of the search service. It loads nothing from other servers, and all text that it shows is text.

import { addressOfDuplicates, showDuplicates } from "./duplicates.js";
import { element, fetched, text, pathOf, thumbnail } from "./common.js";

const DEFAULT_K = 20;
const VIEWS = ["search", "duplicates", "report"];

let info = null;
let current = null; // what is shown: {uri} or {file, number}
let running = null; // what ends the search that is under way
const files = new Map(); // pictures of this visit, by the number that the history has of them

function stateOfLocation() {
  const given = new URLSearchParams(location.search);
  return {
    view: VIEWS.includes(given.get("view")) ? given.get("view") : "search",
    uri: given.get("uri"),
    vector: given.get("vector"),
    basis: given.get("basis"),
    label: given.get("label") || "",
    k: Number(given.get("k")) || DEFAULT_K,
    exact: given.has("exact"),
    distinct: given.has("distinct"),
  };
}

function addressOf(what) {
  const query = new URLSearchParams();
  for (const name of ["uri", "vector", "basis"]) if (what && what[name]) query.set(name, what[name]);
  if (element("label").value) query.set("label", element("label").value);
  const k = element("k").valueAsNumber;
  if (k && k !== DEFAULT_K) query.set("k", k);
  for (const name of ["exact", "distinct"]) if (element(name).checked) query.set(name, "");
  return `?${query}`;
}

function tell(problem) {
  element("problem").hidden = !problem;
  element("problem").textContent = problem || "";
}

async function loadInfo() {
  info = await (await fetched("info")).json();
  const count = info.images.toLocaleString("en");
  const facts = [`${count} image${info.images === 1 ? "" : "s"}`, info.backbone, info.generation];
  element("facts").replaceChildren(...facts.flatMap((fact, n) => [n ? " · " : "", text("fact", fact)]));
  const chosen = element("label").value;
  element("label").replaceChildren(new Option("all", ""), ...info.labels.map((label) => new Option(label, label)));
  element("label").value = info.labels.includes(chosen) ? chosen : "";
  element("label-field").hidden = info.labels.length < 2;
  element("tab-report").hidden = !info.has_report;
  element("k").max = info.limits.max_k;
}

// What is searched for

function formOf(asked) {
  const form = new FormData();
  if (asked.file) form.append("image", asked.file, asked.file.name || "picture");
  else if (asked.vector) form.append("vectors", JSON.stringify(numbersOf(asked.vector)));
  else {
    form.append("uri", asked.uri);
    form.append("exclude_self", "true");
  }
  form.append("k", String(element("k").valueAsNumber || DEFAULT_K));
  for (const name of ["exact", "distinct"]) if (element(name).checked) form.append(name, "true");
  const label = element("label").value;
  if (label) form.append("where", `label=${label.replace(/[\\,]/g, "\\$&")}`);
  return form;
}

// A vector as a link holds it: float32 numbers in base64, as addresses may have it

function textOf(numbers) {
  const bytes = new Uint8Array(Float32Array.from(numbers).buffer);
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function numbersOf(words) {
  const bytes = Uint8Array.from(atob(words.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  const numbers = [...new Float32Array(bytes.buffer)];
  if (!numbers.every(Number.isFinite)) throw new RangeError("not finite");
  return numbers;
}

function isReadable(words) {
  try {
    return numbersOf(words).length > 0;
  } catch {
    return false;
  }
}

async function linkOf(asked) {
  if (!asked.file) return addressOf(asked);
  const form = formOf(asked);
  form.set("k", "1");
  form.append("with_vectors", "true");
  const answer = await (await fetched("search", { method: "POST", body: form })).json();
  return addressOf({ vector: textOf(answer.results[0].vector), basis: info.basis });
}

async function search() {
  if (running) running.abort();
  const mine = running = new AbortController();
  const asked = current;
  const form = formOf(asked);
  if (asked.file) {
    if (info && asked.file.size > info.limits.max_bytes) {
      show([]);
      tell(`The picture is too large: it may have ${Math.floor(info.limits.max_bytes / 2 ** 20)} MiB at most.`);
      return;
    }
  }
  tell("");
  element("results").setAttribute("aria-busy", "true");
  element("status").textContent = "Searching…";
  const started = performance.now();
  try {
    const response = await fetched("search", { method: "POST", body: form, signal: mine.signal });
    const answer = await response.json();
    const [result] = answer.results;
    tell(result.error && result.error.message);
    show(result.neighbors);
    if (asked.file && result.known) element("query-name").textContent = `Indexed as ${result.known}`;
    const count = result.neighbors.length;
    element("status").textContent =
      `${count} neighbor${count === 1 ? "" : "s"} in ${Math.round(performance.now() - started)} ms`;
    if (info && answer.generation !== info.generation) await loadInfo();
  } catch (error) {
    if (error.name === "AbortError") return;
    show([]);
    element("status").textContent = "";
    tell(error.message);
  } finally {
    if (running === mine) element("results").removeAttribute("aria-busy");
  }
}

function showQuery() {
  const frame = element("shown");
  frame.querySelectorAll("img").forEach((old) => URL.revokeObjectURL(old.src));
  frame.replaceChildren();
  element("share").hidden = false;
  element("query-name").textContent = "";
  if (current.vector) {
    frame.append(placeholder("A picture that someone has searched by"));
    return;
  }
  const picture = document.createElement("img");
  const name = current.uri || current.file.name || "pasted picture";
  picture.alt = `Query: ${name}`;
  picture.src = current.uri ? `thumbnails/${pathOf(current.uri)}` : URL.createObjectURL(current.file);
  picture.onerror = () => frame.replaceChildren(placeholder("cannot be shown"));
  frame.append(picture);
  element("query-name").textContent = name;
}

function placeholder(text) {
  const shown = document.createElement("p");
  shown.className = "soft";
  shown.textContent = text;
  return shown;
}

// Neighbors

function show(neighbors) {
  element("empty").hidden = true;
  element("results").replaceChildren(...neighbors.map(item));
}

function item(neighbor) {
  const folder = neighbor.uri.split("/");
  const file = folder.pop();
  const link = document.createElement("a");
  link.href = addressOf({ uri: neighbor.uri });
  link.title = neighbor.uri;
  link.addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return; // as of any link, in a window of its own
    event.preventDefault();
    go({ uri: neighbor.uri });
  });
  const similarity = document.createElement("span");
  similarity.className = "similarity";
  const bar = document.createElement("meter");
  bar.min = 0;
  bar.max = 1;
  bar.value = Math.max(0, neighbor.similarity);
  bar.setAttribute("aria-hidden", "true");
  const value = document.createElement("span");
  const distance = info && info.metric !== "angular" ? ` · ${neighbor.distance.toFixed(3)} away` : "";
  value.textContent = neighbor.similarity.toFixed(3) + distance;
  similarity.append(bar, value);
  link.append(thumbnail(neighbor.uri), text("file", file), text("label", described(neighbor)), similarity);
  link.setAttribute("aria-label",
    `${neighbor.rank}: ${neighbor.uri}, similarity ${neighbor.similarity.toFixed(3)}. Search by this picture`);
  const entry = document.createElement("li");
  entry.append(link);
  return entry;
}

function described(neighbor) {
  const copies = neighbor.copies ? ` · ${neighbor.copies} cop${neighbor.copies === 1 ? "y" : "ies"}` : "";
  return (neighbor.label || "") + copies;
}

// Where people go

function go(what, { push = true } = {}) {
  current = what;
  if (push) history.pushState({ picture: what.number ?? null }, "", addressOf(what));
  showQuery();
  return search();
}

function take(file) {
  if (!file) return;
  if (!file.type.startsWith("image/") && file.type) {
    tell(`${file.name} is no picture.`);
    return;
  }
  const number = files.size;
  files.set(number, file);
  go({ file, number });
}

function restore(saved) {
  const state = stateOfLocation();
  for (const view of VIEWS) {
    element(`${view}-view`).hidden = view !== state.view;
    if (view === state.view) element(`tab-${view}`).setAttribute("aria-current", "page");
    else element(`tab-${view}`).removeAttribute("aria-current");
  }
  if (state.view === "report") {
    if (!element("report").src) element("report").src = "report";
    return;
  }
  if (state.view === "duplicates") {
    showDuplicates(new URLSearchParams(location.search));
    return;
  }
  element("k").value = state.k;
  element("label").value = state.label;
  if (element("label").selectedIndex < 0) element("label").value = "";
  element("exact").checked = state.exact;
  element("distinct").checked = state.distinct;
  const number = saved && saved.picture;
  if (state.uri) go({ uri: state.uri }, { push: false });
  else if (state.vector && state.basis !== info.basis) {
    clear();
    tell("The index has changed since this link was made. Choose the picture again.");
  } else if (state.vector && !isReadable(state.vector)) {
    clear();
    tell("This link cannot be read: a part of it is missing or changed.");
  } else if (state.vector) go({ vector: state.vector, basis: state.basis }, { push: false });
  else if (files.has(number)) go({ file: files.get(number), number }, { push: false });
  else clear();
}

function clear() {
  current = null;
  if (running) running.abort();
  const hint = placeholder("Drop, paste or choose a picture");
  hint.id = "hint";
  element("shown").replaceChildren(hint);
  element("query-name").textContent = "";
  element("share").hidden = true;
  element("results").replaceChildren();
  element("results").removeAttribute("aria-busy");
  element("status").textContent = "";
  element("empty").hidden = false;
  tell("");
}

function changed() {
  if (!current) return;
  history.replaceState(history.state, "", addressOf(current));
  search();
}

async function problemWith(token) {
  const wrong = "This is not the token of this service.";
  if (!/^[\x20-\x7e]+$/.test(token)) return wrong; // a header cannot hold it
  try {
    const response = await fetch("session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
    return response.ok ? "" : wrong;
  } catch {
    return "The service cannot be reached. Try again in a moment.";
  }
}

element("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const problem = await problemWith(element("token").value);
  element("token-problem").textContent = problem;
  if (problem) return;
  element("token-dialog").close();
  begin();
});

element("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = "";
});
element("query").addEventListener("submit", (event) => event.preventDefault());
for (const name of ["k", "exact", "distinct", "label"]) element(name).addEventListener("change", changed);
element("share").addEventListener("click", async () => {
  let link = "";
  try {
    link = new URL(await linkOf(current), location.href).href;
    await navigator.clipboard.writeText(link);
    element("status").textContent = "The link is copied.";
  } catch (error) {
    if (link) prompt("The link", link); // where a page may not write to the clipboard
    else tell(error.message);
  }
});
const addresses = { search: () => addressOf(current), duplicates: addressOfDuplicates, report: () => "?view=report" };
for (const view of VIEWS) {
  element(`tab-${view}`).addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    const saved = { picture: current && current.number };
    history.pushState(saved, "", addresses[view]());
    restore(saved);
  });
}
addEventListener("popstate", (event) => restore(event.state));
addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files[0]);
});

async function begin() {
  try {
    await loadInfo();
  } catch (error) {
    tell(error.message);
    return;
  }
  restore(history.state);
}

begin();
