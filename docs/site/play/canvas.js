// The paper: strokes of a mouse, a finger or a pen, or a picture; and what lies over it.

export const MOST_PIXELS = 40e6; // of a picture: 160 MB of memory

/** Makes a canvas one to draw on; `changed` is called after each stroke and picture. */
export function paper(canvas, strokeWidth, changed) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let picture = null; // pixels of a picture that nothing was drawn on
  let last = null;

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  const stroke = (from, to) => {
    picture = null;
    Object.assign(context, { lineWidth: strokeWidth(), lineCap: "round", strokeStyle: "black" });
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    stroke(last, last);
    changed();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const parts = event.getCoalescedEvents?.() ?? [];
    for (const part of parts.length ? parts : [event]) {
      const next = place(part);
      stroke(last, next);
      last = next;
    }
    changed();
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));

  const clear = () => {
    picture = null;
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
  };
  clear();
  return {
    clear,
    /** Shows a picture, as wide and as high as the paper: so the network sees it. */
    show(pixels) {
      clear();
      context.drawImage(onCanvas(pixels), 0, 0, canvas.width, canvas.height);
      picture = pixels;
    },
    pixels: () => picture ?? context.getImageData(0, 0, canvas.width, canvas.height),
  };
}

/** The pixels of a file, transparent ones on white. Raises: an error with a sentence. */
export async function decoded(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => null);
  if (!bitmap) throw new Error(`“${file.name}” is no picture that this browser can read; PNG and JPEG it can.`);
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS)
    throw new Error(`“${file.name}” has ${width} × ${height} pixels; ${MOST_PIXELS / 1e6} million are the most here.`);
  return pixelsOf(bitmap, 0, 0, width, height);
}

/** A part of a picture as pixels {data, width, height}, on white. */
export function pixelsOf(source, x, y, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, x, y, width, height, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

export function onCanvas(pixels) {
  const canvas = Object.assign(document.createElement("canvas"), { width: pixels.width, height: pixels.height });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** Whether all pixels are of one colour: there is nothing to see. */
export function isBlank({ data }) {
  const colours = new Uint32Array(data.buffer);
  return colours.every((colour) => colour === colours[0]);
}

export function inverted({ data, width, height }) {
  return new ImageData(data.map((level, i) => (i % 4 === 3 ? level : 255 - level)), width, height);
}

/** Lays a map over a canvas, its outer places on the edges: the more a place has of the largest, the more orange. */
export function overlay(canvas, { values, height, width }) {
  const most = Math.max(...values, 1e-9);
  const small = new ImageData(width, height);
  values.forEach((value, i) => small.data.set([230, 97, 0, 190 * Math.max(value / most, 0)], 4 * i));
  const context = canvas.getContext("2d");
  const [x, y] = [canvas.width / (width - 1), canvas.height / (height - 1)];
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(onCanvas(small), -x / 2, -y / 2, canvas.width + x, canvas.height + y);
}
