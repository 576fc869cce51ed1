// Elements of the page. Text goes in as text nodes only, so nothing that anyone wrote becomes markup.

import { clipPlayer } from "/sound.js";

export const $ = (id) => document.getElementById(id);

// An element with properties ("on..." are listeners, others attributes) and children (elements or texts).
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

export function icon(paths) {
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", paths);
  drawing.append(path);
  return drawing;
}

const ICONS = {
  sound: "M4 10v4M8 7v10M12 4v16M16 8v8M20 10v4",
  text: "M5 6h14M5 11h14M5 16h9",
};

export function announce(text) {
  $("status").textContent = text;
}

// A medium as it is shown: a picture, or a player with the clip's waveform.
export function mediumView(medium) {
  if (medium.kind === "sound") return clipPlayer(medium);
  return medium.shown === false ? element("div", { class: "name" }, medium.name)
    : element("img", { src: medium.url, alt: medium.name });
}

// Adds the user's turn to the log. `parts` are texts and media.
export function addQuestion(parts, earlier = false) {
  const bubble = element("div", { class: "bubble" });
  for (const part of parts) bubble.append(typeof part === "string" ? part : mediumView(part));
  const turn = element("li", { class: `turn mine${earlier ? " earlier" : ""}` },
    element("span", { class: "hidden" }, "You asked:"), bubble);
  $("log").append(turn);
  return turn;
}

// Adds an empty answer to the log; returns it with what changes it.
export function addAnswer(onRetry) {
  const bubble = element("div", { class: "bubble" });
  const meta = element("div", { class: "meta" });
  const turn = element("li", { class: "turn" }, element("span", { class: "hidden" }, "It answered:"), bubble, meta);
  $("log").append(turn);
  const atEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 120;
  return {
    turn,
    begin(reference) {
      turn.classList.add("busy");
      turn.setAttribute("aria-busy", "true");
      bubble.textContent = "";
      meta.textContent = "";
      turn.querySelector(".reference")?.remove();
      if (reference != null) {
        turn.append(element("p", { class: "reference" }, element("span", { class: "soft" }, "Reference: "), reference));
      }
      $("log").scrollTop = $("log").scrollHeight;
    },
    add(text) {
      const follow = atEnd();
      bubble.append(text);
      if (follow) $("log").scrollTop = $("log").scrollHeight;
    },
    end(facts, problem) {
      turn.classList.remove("busy");
      turn.removeAttribute("aria-busy");
      if (problem) bubble.append(element("span", { class: "problem", role: "alert" }, problem));
      else if (!bubble.textContent) bubble.append(element("span", { class: "soft" }, "(an empty answer)"));
      for (const old of document.querySelectorAll(".retry")) old.remove();
      meta.append(...facts.map((fact) => element("span", {}, fact)),
        element("button", { type: "button", class: "retry", onclick: onRetry }, "Retry"));
      $("log").scrollTop = $("log").scrollHeight;
    },
  };
}

// Facts about an answer, from the server's counts.
export function answerFacts(usage, timings, finish) {
  const words = { text_tokens: "text", image_tokens: "picture", audio_tokens: "sound" };
  const kinds = Object.entries(words).filter(([key]) => usage.prompt_tokens_details[key])
    .map(([key, word]) => `${usage.prompt_tokens_details[key]} ${word}`);
  const facts = [`given ${usage.prompt_tokens} tokens: ${kinds.join(", ")}`,
    `first token after ${(timings.queued_s + timings.first_token_s).toFixed(2)} s`];
  if (timings.tokens_per_s) facts.push(`${usage.completion_tokens} at ${timings.tokens_per_s.toFixed(0)} tokens/s`);
  if (finish === "length") facts.push("cut at the length set");
  return facts;
}

// A button that shows a held-out sample; `load` fetches its picture.
export function sampleButton(sample, onclick, load) {
  const words = sample.question.replace(/<image>|<audio>/g, "").trim();
  const kind = element("span", { class: "kind" }, icon(sample.audios ? ICONS.sound : ICONS.text));
  const button = element("button", { type: "button", class: "sample", onclick }, kind,
    element("span", { class: "what" }, words || (sample.audios ? "(asked in speech)" : "(nothing is asked in words)")));
  if (sample.images) load().then((url) => kind.replaceWith(element("img", { src: url, alt: "" })), () => {});
  return button;
}

export function fillAbout(about) {
  $("model").textContent = about.model;
  document.title = `μOmni: ${about.model}`;
  $("api").textContent = `${location.origin}/v1`;
  const millions = (count) => `${(count / 1e6).toFixed(2)} M`;
  $("parts").tBodies[0].replaceChildren(...about.parts.map((part) => element("tr", {}, element("td", {}, part.name),
    element("td", { class: "soft" }, part.layers ? `${part.layers} layers × ${part.width}` : ""),
    element("td", {}, millions(part.parameters)))));
  $("figures").hidden = !about.figures.length;
  $("figures").querySelector("tbody").replaceChildren(...about.figures.map((figure) => element("tr", {},
    element("td", {}, figure.name), element("td", {}, figure.value), element("td", { class: "soft" }, figure.swapped ?? ""))));
}
