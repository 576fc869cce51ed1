// Requests to the server, with its token if it wants one.

import { $ } from "/view.js";

const fragment = new URLSearchParams(location.hash.slice(1));
if (fragment.has("token")) {
  sessionStorage.setItem("token", fragment.get("token"));
  history.replaceState(null, "", location.pathname);
}

export async function call(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem("token");
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 401) return response;
    $("token-view").showModal();
    await new Promise((done) => $("token-view").addEventListener("close", done, { once: true }));
    sessionStorage.setItem("token", $("token").value.trim());
  }
}

export async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

// The events of a streamed answer.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const lines = text.split("\n\n");
    text = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}

function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}

export function contentPart(part) {
  if (typeof part === "string") return { type: "text", text: part };
  part.base64 ??= base64(part.bytes);
  return part.kind === "picture"
    ? { type: "image_url", image_url: { url: `data:${part.type};base64,${part.base64}` } }
    : { type: "input_audio", input_audio: { data: part.base64, format: part.format } };
}
