// The page around segment.js: choosing pictures, showing what came out.

import {loadNetwork, segment} from './segment.js';

const DESCRIPTION = 'network.json';
const SETTINGS = 'page.json';
// Pictures are shown at most so large; what the network gets does not depend on it.
const SHOWN_SIDE = 1024;

const $ = (id) => document.getElementById(id);
const percent = (share) => (share < 0.0005 ? '< 0.1 %' : `${(100 * share).toFixed(1)} %`);
let network = null;
let camera = null;
// Of several requests the last one counts.
let request = 0;
// What is shown, and the classes whose colours are not.
let shown = null;
const hidden = new Set();

/** Says what went wrong, unless something else was asked for since. */
function fail(message, mine = request) {
  if (mine !== request) return;
  $('status').textContent = '';
  $('error').textContent = message;
  $('error').hidden = false;
}

function busy(text) {
  $('error').hidden = true;
  $('status').textContent = text;
}

/** Lets the browser paint before the computation keeps it from doing so. */
function painted() {
  return new Promise((resolve) => setTimeout(() => requestAnimationFrame(() => setTimeout(resolve))));
}

async function show(source, name, mine = ++request) {
  const height = source.videoHeight ?? source.naturalHeight ?? source.height;
  const width = source.videoWidth ?? source.naturalWidth ?? source.width;
  const scale = Math.min(1, SHOWN_SIDE / Math.max(height, width));
  const size = {height: Math.max(1, Math.round(scale * height)), width: Math.max(1, Math.round(scale * width))};
  const start = performance.now();
  const result = await segment(network, source, size);
  if (mine !== request) return;
  for (const id of ['photo', 'overlay']) Object.assign($(id), size);
  const context = $('photo').getContext('2d');
  // As the network sees it where the picture is transparent.
  context.fillStyle = '#fff';
  context.fillRect(0, 0, size.width, size.height);
  context.drawImage(source, 0, 0, size.width, size.height);
  shown = result;
  paint();
  const altogether = Math.round(performance.now() - start);
  $('status').textContent = `${name}: ${Math.max(1, Math.round(result.milliseconds))} ms in the network, ${altogether} ms altogether`;
  describe(result, name);
}

function paint() {
  $('overlay').getContext('2d').putImageData(colored(shown), 0, 0);
}

function colored({labels, height, width}) {
  const image = new ImageData(width, height);
  const colors = new Uint32Array(256);
  network.palette.forEach(([red, green, blue], label) => {
    // Little-endian, as every browser is: alpha first.
    colors[label] = hidden.has(label) ? 0 : ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
  const pixels = new Uint32Array(image.data.buffer);
  for (let index = 0; index < labels.length; index++) pixels[index] = colors[labels[index]];
  return image;
}

function describe({shares}, name) {
  const present = Array.from(shares, (share, label) => ({share, label})).filter(({share}) => share > 0);
  present.sort((one, other) => other.share - one.share);
  $('legend').querySelector('tbody').replaceChildren(...present.map(({share, label}) => row(share, label)));
  $('legend').hidden = false;
  const main = present.slice(0, 3).map(({share, label}) => `${network.classes[label]} ${percent(share)}`);
  $('photo').setAttribute('aria-label', `${name}; ${main.join(', ')}`);
}

function row(share, label) {
  const [made, title, value, name] = ['tr', 'th', 'td', 'label'].map((kind) => document.createElement(kind));
  const box = Object.assign(document.createElement('input'), {type: 'checkbox', checked: !hidden.has(label)});
  box.addEventListener('change', () => {
    hidden[box.checked ? 'delete' : 'add'](label);
    paint();
  });
  title.scope = 'row';
  name.append(box, swatch(network.palette[label]), network.classes[label]);
  title.append(name);
  value.className = 'share';
  value.textContent = percent(share);
  made.append(title, value);
  return made;
}

/** A square of a class's colour, with an edge where the page has the same colour. */
function swatch(color) {
  const canvas = Object.assign(document.createElement('canvas'), {className: 'swatch', width: 16, height: 16});
  canvas.style.display = 'inline-block';
  const context = canvas.getContext('2d');
  context.fillStyle = `rgb(${color.join(',')})`;
  context.fillRect(0, 0, 16, 16);
  context.strokeStyle = 'rgb(128 128 128 / .7)';
  context.strokeRect(0.5, 0.5, 15, 15);
  canvas.setAttribute('aria-hidden', 'true');
  return canvas;
}

/** Shows a picture out of a file, or says why not. */
async function open(blob, name) {
  stopCamera();
  const mine = ++request;
  if (blob.type && !blob.type.startsWith('image/')) {
    return fail(`${name} is no picture (${blob.type}): choose a photograph, such as a JPEG or PNG file.`);
  }
  busy(`${name}: computing …`);
  await painted();
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    return fail(`${name} cannot be read as a picture: it is damaged, or of a kind that this browser does not know. Try JPEG or PNG.`, mine);
  }
  try {
    await show(bitmap, name, mine);
  } catch (error) {
    fail(`${name} could not be segmented: ${error.message}`, mine);
  } finally {
    bitmap.close();
  }
}

function press(pressed) {
  for (const button of $('samples').children) button.setAttribute('aria-pressed', String(button === pressed));
}

async function openSample({file, title}, button) {
  press(button);
  const response = await fetch(file).catch(() => null);
  if (!response?.ok) return fail(`${title} cannot be loaded: is the page still being served?`);
  await open(await response.blob(), title);
}

function listSamples(samples) {
  const buttons = samples.map((sample) => {
    const button = Object.assign(document.createElement('button'), {type: 'button', title: sample.title});
    button.append(Object.assign(document.createElement('img'), {src: sample.file, alt: sample.title}));
    button.setAttribute('aria-pressed', 'false');
    button.addEventListener('click', () => openSample(sample, button));
    return button;
  });
  $('samples').replaceChildren(...buttons);
  $('samples').hidden = !buttons.length;
  return buttons;
}

async function startCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    return fail('Browsers give the camera to pages at https:// or at localhost only: open this page at one of them.');
  }
  const video = Object.assign(document.createElement('video'), {muted: true, playsInline: true});
  camera = {video, stream: null};
  const own = camera;
  try {
    busy('Waiting for the camera …');
    own.stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
    if (camera !== own) return own.stream.getTracks().forEach((track) => track.stop());
    video.srcObject = own.stream;
    await video.play();
  } catch (error) {
    stopCamera();
    const refused = error.name === 'NotAllowedError' ? 'the browser was not allowed to use it' : error.message;
    return fail(`No camera: ${refused}.`);
  }
  $('camera').setAttribute('aria-pressed', 'true');
  $('camera').textContent = 'Stop the camera';
  press(null);
  try {
    while (camera === own) {
      await show(video, 'Camera');
      await painted();
    }
  } catch (error) {
    stopCamera();
    fail(`The camera's picture could not be segmented: ${error.message}`);
  }
}

function stopCamera() {
  camera?.stream?.getTracks().forEach((track) => track.stop());
  camera = null;
  $('camera').setAttribute('aria-pressed', 'false');
  $('camera').textContent = 'Use the camera';
}

function listen() {
  $('file').addEventListener('change', () => {
    const [file] = $('file').files;
    // So that the same file can be chosen again.
    $('file').value = '';
    press(null);
    if (file) open(file, file.name);
  });
  $('camera').addEventListener('click', () => {
    request++;
    return camera ? stopCamera() : startCamera();
  });
  const opacity = () => {
    $('overlay').style.opacity = $('opacity').value / 100;
    $('opacity-value').textContent = `${$('opacity').value} %`;
  };
  $('opacity').addEventListener('input', opacity);
  // A browser may keep the slider's place when the page is loaded again.
  opacity();
  const drop = (event) => {
    event.preventDefault();
    document.body.classList.toggle('dropping', event.type === 'dragover');
    const [file] = (event.type === 'drop' && event.dataTransfer.files) || [];
    if (event.type !== 'drop') return;
    if (!file) return fail('That was no file: drop a photograph from a folder.');
    press(null);
    open(file, file.name);
  };
  for (const kind of ['dragover', 'dragleave', 'drop']) document.addEventListener(kind, drop);
  document.addEventListener('visibilitychange', () => document.hidden && camera && stopCamera());
}

function introduce({description, height, width, classes}) {
  const size = height && width ? `${width} × ${height} pixels` : 'pictures of any size';
  const kind = description.quantization === 'none' ? 'float32' : description.quantization;
  const megabytes = description.bytes / 1e6;
  const bytes = `${megabytes.toFixed(megabytes < 10 ? 2 : 0)} MB`;
  $('network').textContent = `Network: ${description.network}, ${classes.length} classes, ${size}, ${description.format} ${kind}, ${bytes}.`;
}

async function start() {
  const controls = [$('file'), $('camera')];
  let settings;
  for (const control of controls) control.disabled = true;
  try {
    settings = await (await fetch(SETTINGS)).json();
    network = await loadNetwork(DESCRIPTION, settings);
  } catch (error) {
    return fail(`The network cannot be run here: ${error.message}`);
  }
  for (const control of controls) control.disabled = false;
  // What is only background keeps its own colours, until asked for.
  if (network.classes[0] === 'background') hidden.add(0);
  introduce(network);
  listen();
  busy('Ready.');
  const [first] = listSamples(settings.samples);
  first?.click();
}

start();
