// Segments pictures by a network that kerasseg exported, in the browser: `loadNetwork`, then `segment` as often as wanted.
//
//     import {loadNetwork, segment} from './segment.js';
//     const network = await loadNetwork('network.json');
//     const {labels, shares} = await segment(network, document.querySelector('img'));
//
// The runtimes lie in vendor/ beside this file; nothing else is loaded. Pictures are brought to the network's size as
// kerasseg.evaluation does it: shrunk, never enlarged, to fit, and continued by reflection at the bottom and right.

// Of a network that takes any size, what a picture is shrunk to: scores of larger ones would fill a phone's memory.
const LARGEST_SIDE = 512;
// Larger photographs are shrunk by the browser before anything here looks at their pixels.
const LARGEST_SOURCE = 2048;
const LABELS = ['labels', 'nearest_labels', 'coarse_labels'];
const RUNTIMES = {tflite: openLiteRt, onnx: openOnnx};

const here = (path) => new URL(path, import.meta.url).href;

/**
 * Loads a network and its runtime, and runs it once, so that no picture pays for what is set up once.
 *
 * @param {string|URL} url The JSON beside the file, as tools/export.py wrote it; the file has the name that it says.
 * @param {{threads?: boolean}} options Whether to use several threads where the browser allows it (the page must be served with
 *     COOP and COEP headers); else one.
 * @return {Promise<Object>} The network: `description`, `classes`, `palette`, `height` and `width` (null: any), and `run`.
 * @throws {Error} If something is missing, damaged, or of a kind that a browser cannot run; the message is one line for people.
 */
export async function loadNetwork(url, {threads = false} = {}) {
  const base = new URL(url, document.baseURI);
  const description = JSON.parse(new TextDecoder().decode(await read(base)));
  const bytes = await read(new URL(description.file, base));
  await check(bytes, description);
  const open = RUNTIMES[description.format];
  if (!open) throw new Error(`A browser cannot run the format ${description.format}: export it as tflite or onnx.`);
  const [name, output] = Object.entries(description.outputs)[0];
  const run = await open(bytes, {name, input: description.input, threads: threads && self.crossOriginIsolated});
  const [, height, width] = description.input.shape;
  const network = {description, output, run, height, width, classes: null, palette: null};
  const first = await run(new Float32Array((height ?? 64) * (width ?? 64) * 3), [1, height ?? 64, width ?? 64, 3]);
  const count = LABELS.includes(output.meaning) ? null : first.shape.at(-1);
  network.classes = description.classes ?? Array.from({length: count ?? 256}, (_, index) => `class ${index}`);
  network.palette = description.palette ?? network.classes.map((_, index) => vocColor(index));
  return network;
}

/**
 * Labels the pixels of a picture.
 *
 * @param {Object} network What `loadNetwork` gave.
 * @param {CanvasImageSource|ImageData} source The picture: an image, canvas, video, bitmap or pixels.
 * @param {{height?: number, width?: number}} size Of the label map; the picture's own by default.
 * @return {Promise<Object>} `labels` (Uint8Array, row by row), their `height` and `width`, `shares` (of each class, adding up to
 *     1) and `milliseconds` that the network alone took.
 */
export async function segment(network, source, size = {}) {
  const pixels = pixelsOf(source);
  const picture = fit(pixels, network.height, network.width);
  const start = performance.now();
  const result = await network.run(picture.values, [1, picture.height, picture.width, 3]);
  const milliseconds = performance.now() - start;
  const height = size.height ?? sideOf(source, 'height');
  const width = size.width ?? sideOf(source, 'width');
  const labels = LABELS.includes(network.output.meaning)
    ? nearestLabels(result, picture, network.output.cells, height, width)
    : resizedLabels(result, picture, height, width);
  return {labels, height, width, shares: sharesOf(labels, network.classes.length), milliseconds};
}

async function read(url) {
  const response = await fetch(url).catch((error) => {
    throw new Error(`${url.pathname} cannot be loaded (${error.message}): is the page still being served?`);
  });
  if (!response.ok) throw new Error(`${url.pathname} cannot be loaded: the server answers ${response.status}.`);
  return new Uint8Array(await response.arrayBuffer());
}

async function check(bytes, {file, sha256}) {
  // Browsers offer it to https and localhost only.
  if (!self.crypto?.subtle || !sha256) return;
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
  if (found !== sha256) throw new Error(`${file} is damaged, or not the file that its JSON describes: build the page again.`);
}

let liteRt = null;

async function openLiteRt(bytes, {name, input, threads}) {
  const {loadLiteRt, loadAndCompile, Tensor} = await import('./vendor/litert/index.js');
  liteRt ??= loadLiteRt(here('vendor/litert/wasm/'), {threads});
  await liteRt;
  const model = await loadAndCompile(bytes, {accelerator: 'wasm'});
  return async (values, shape) => {
    const data = input.type === 'uint8' ? Uint8Array.from(values, (value) => Math.round(value)) : values;
    const given = new Tensor(data, shape);
    try {
      const results = await model.run({[model.getInputDetails()[0].name]: given});
      const result = results[name] ?? Object.values(results)[0];
      const found = {data: await result.data(), shape: Array.from(result.type.layout.dimensions)};
      for (const each of Object.values(results)) each.delete();
      return found;
    } finally {
      given.delete();
    }
  };
}

async function openOnnx(bytes, {name, threads}) {
  const ort = await import('./vendor/onnxruntime/ort.wasm.bundle.min.mjs');
  // Of the two files that it could load, the script is in the bundle.
  ort.env.wasm.wasmPaths = {wasm: here('vendor/onnxruntime/ort-wasm-simd-threaded.wasm')};
  ort.env.wasm.numThreads = threads ? navigator.hardwareConcurrency : 1;
  const session = await ort.InferenceSession.create(bytes, {executionProviders: ['wasm'], logSeverityLevel: 3});
  return async (values, shape) => {
    const results = await session.run({[session.inputNames[0]]: new ort.Tensor('float32', values, shape)});
    const result = results[name] ?? results[session.outputNames[0]];
    return {data: result.data, shape: Array.from(result.dims)};
  };
}

function sideOf(source, side) {
  const natural = {height: source.naturalHeight ?? source.videoHeight, width: source.naturalWidth ?? source.videoWidth};
  return natural[side] ?? source[side];
}

/** RGBA pixels of whatever a picture is. */
function pixelsOf(source) {
  if (source instanceof ImageData) return source;
  const [height, width] = [sideOf(source, 'height'), sideOf(source, 'width')];
  if (!height || !width) throw new Error('The picture has no pixels (yet).');
  const scale = Math.min(1, LARGEST_SOURCE / Math.max(height, width));
  const canvas = document.createElement('canvas');
  canvas.height = Math.max(1, Math.round(scale * height));
  canvas.width = Math.max(1, Math.round(scale * width));
  const context = canvas.getContext('2d', {willReadFrequently: true});
  context.imageSmoothingQuality = 'high';
  // Else what is transparent would be black.
  context.fillStyle = '#fff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** A picture as the network takes it: `values` (float32, RGB), and the part of it that is the picture, not its reflection. */
function fit(pixels, height, width) {
  const [rows, columns] = [height ?? LARGEST_SIDE, width ?? LARGEST_SIDE];
  const scale = Math.min(1, rows / pixels.height, columns / pixels.width);
  const used = {
    height: Math.min(rows, Math.max(1, Math.round(scale * pixels.height))),
    width: Math.min(columns, Math.max(1, Math.round(scale * pixels.width))),
  };
  const full = {height: height ?? used.height, width: width ?? used.width};
  const down = taps(pixels.height, used.height);
  const across = taps(pixels.width, used.width);
  const narrow = new Float32Array(pixels.height * used.width * 3);
  for (let row = 0, at = 0; row < pixels.height; row++) {
    for (let column = 0; column < used.width; column++, at += 3) {
      const {first, weights} = across[column];
      for (let tap = 0, from = 4 * (row * pixels.width + first); tap < weights.length; tap++, from += 4) {
        for (let channel = 0; channel < 3; channel++) narrow[at + channel] += weights[tap] * pixels.data[from + channel];
      }
    }
  }
  const values = new Float32Array(full.height * full.width * 3);
  const [mirroredRows, mirroredColumns] = [reflected(full.height, used.height), reflected(full.width, used.width)];
  const line = new Float32Array(used.width * 3);
  for (let row = 0, at = 0; row < full.height; row++) {
    const {first, weights} = down[mirroredRows[row]];
    line.fill(0);
    for (let tap = 0; tap < weights.length; tap++) {
      const from = (first + tap) * line.length;
      for (let index = 0; index < line.length; index++) line[index] += weights[tap] * narrow[from + index];
    }
    for (let column = 0; column < full.width; column++) {
      for (let channel = 0; channel < 3; channel++) values[at++] = line[3 * mirroredColumns[column] + channel];
    }
  }
  return {values, ...full, used};
}

/** For each of `size` places, which of `length` pixels it is the weighted mean of: a triangle as wide as a place, as Pillow's. */
function taps(length, size) {
  const step = length / size;
  const reach = Math.max(1, step);
  return Array.from({length: size}, (_, place) => {
    const centre = (place + 0.5) * step;
    const first = Math.max(0, Math.floor(centre - reach + 0.5));
    const last = Math.min(length, Math.floor(centre + reach + 0.5));
    const weights = Array.from({length: last - first}, (_, tap) => Math.max(0, 1 - Math.abs((first + tap + 0.5 - centre) / reach)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return {first, weights: weights.map((weight) => weight / sum)};
  });
}

/** Which of `used` places is seen at each of `full`: there and back again, the last one not twice. */
function reflected(full, used) {
  const period = Math.max(1, 2 * (used - 1));
  return Array.from({length: full}, (_, place) => Math.min(place % period, period - (place % period)));
}

/** Class numbers at another size: of each pixel, those of the nearest place. */
function nearestLabels({data, shape}, {height, width, used}, cells, rows, columns) {
  const [, mapRows, mapColumns] = shape;
  // Cell i of coarse labels has its centre at pixel scale · i + shift; of the others cell and pixel are the same.
  const place = (size, of, cell, last) =>
    Array.from({length: size}, (_, index) => {
      const pixel = ((index + 0.5) * of) / size - 0.5;
      const at = cell ? (pixel - cell.shift) / cell.scale : pixel;
      return Math.max(0, Math.min(last - 1, Math.round(at)));
    });
  const fromRows = place(rows, used.height, cells?.rows, mapRows);
  const fromColumns = place(columns, used.width, cells?.columns, mapColumns);
  const labels = new Uint8Array(rows * columns);
  for (let row = 0, at = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) labels[at++] = Number(data[fromRows[row] * mapColumns + fromColumns[column]]);
  }
  return labels;
}

/** The class of the largest score, where the scores are resized bilinearly. */
function resizedLabels({data, shape}, {used}, rows, columns) {
  const [, , mapColumns, classes] = shape;
  const labels = new Uint8Array(rows * columns);
  const [down, across] = [between(used.height, rows), between(used.width, columns)];
  for (let row = 0, at = 0; row < rows; row++) {
    const {low: top, high: bottom, share: lower} = down[row];
    for (let column = 0; column < columns; column++, at++) {
      const {low: left, high: right, share: righter} = across[column];
      const corners = [top * mapColumns + left, top * mapColumns + right, bottom * mapColumns + left, bottom * mapColumns + right];
      const [a, b, c, d] = corners.map((corner) => corner * classes);
      let best = -Infinity;
      for (let index = 0; index < classes; index++) {
        const upper = data[a + index] + righter * (data[b + index] - data[a + index]);
        const under = data[c + index] + righter * (data[d + index] - data[c + index]);
        const score = upper + lower * (under - upper);
        if (score > best) {
          best = score;
          labels[at] = index;
        }
      }
    }
  }
  return labels;
}

/** For each of `size` places, the two of `length` it lies between, centres at half pixels. */
function between(length, size) {
  return Array.from({length: size}, (_, place) => {
    const at = Math.max(0, Math.min(length - 1, ((place + 0.5) * length) / size - 0.5));
    const low = Math.floor(at);
    return {low, high: Math.min(length - 1, low + 1), share: at - low};
  });
}

function sharesOf(labels, classes) {
  const shares = new Float64Array(classes);
  for (const label of labels) if (label < classes) shares[label] += 1 / labels.length;
  return shares;
}

/** The PASCAL VOC colour map, for networks that bring no colours. */
function vocColor(label) {
  const color = [0, 0, 0];
  for (let bit = 7, rest = label; rest; bit--, rest >>= 3) {
    for (let channel = 0; channel < 3; channel++) color[channel] |= ((rest >> channel) & 1) << bit;
  }
  return color;
}
