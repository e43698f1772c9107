// What all tabs of the page share.

export const element = (id) => document.getElementById(id);

export const pathOf = (uri) => uri.split("/").map(encodeURIComponent).join("/");

export function text(kind, words) {
  const made = document.createElement("span");
  made.className = kind;
  made.textContent = words;
  return made;
}

export function thumbnail(uri) {
  const frame = document.createElement("div");
  frame.className = "frame";
  const picture = document.createElement("img");
  picture.loading = "lazy";
  picture.decoding = "async";
  picture.alt = "";
  picture.src = `thumbnails/${pathOf(uri)}`;
  picture.onerror = () => {
    frame.classList.add("missing");
    frame.replaceChildren("cannot be shown");
  };
  frame.append(picture);
  return frame;
}

export function askForToken() {
  const dialog = element("token-dialog");
  if (!dialog.open) dialog.showModal();
}

export async function fetched(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service cannot be reached. Try again in a moment.");
  }
  if (response.ok) return response;
  let told = null;
  try { told = (await response.json()).error; } catch { /* what stands between may answer in its own way */ }
  if (response.status === 401) askForToken();
  throw new Error(told ? `${told.message[0].toUpperCase()}${told.message.slice(1)}.`
    : `The service answered with status ${response.status}.`);
}
