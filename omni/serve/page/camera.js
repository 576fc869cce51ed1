// Pictures: from files, from the clipboard, and from the camera.

import { $ } from "/view.js";

const AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]; // the server reads these
const MAX_BYTES = 2_000_000, MAX_SIDE = 1600; // a larger picture is sent smaller: the system sees few pixels anyway

export async function pictureFromFile(file) {
  const name = file.name || "picture";
  if (AS_THEY_ARE.includes(file.type) && file.size <= MAX_BYTES) return picture(name, file);
  try {
    return picture(name, await smaller(await createImageBitmap(file)));
  } catch {
    return { ...await picture(name, file), shown: false }; // the browser can't read it; the server may
  }
}

async function picture(name, blob) {
  return { kind: "picture", name, type: blob.type || "image/unknown", url: URL.createObjectURL(blob),
    bytes: new Uint8Array(await blob.arrayBuffer()) };
}

function smaller(source, width = source.width, height = source.height) {
  const scale = Math.min(1, MAX_SIDE / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white"; // as the server does with transparency
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(source, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
}

// Shows the camera; resolves to a picture, or to null if the user cancels.
export async function takePicture() {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  const view = $("camera-view"), video = view.querySelector("video");
  video.srcObject = stream;
  await video.play();
  view.returnValue = "";
  view.showModal();
  const choose = ({ target }) => target.value && view.close(target.value);
  view.addEventListener("click", choose);
  await new Promise((done) => view.addEventListener("close", done, { once: true }));
  view.removeEventListener("click", choose);
  const taken = view.returnValue === "take" && video.videoWidth
    ? await smaller(video, video.videoWidth, video.videoHeight) : null;
  stream.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  return taken && picture("your picture", taken);
}
