/* The page that segments: runs the network of network.js by ONNX Runtime Web. Nothing is sent. */
"use strict";

(() => {
  const LONGEST = 1024; // pixels of the picture's longer side
  const TOP_SHARE = 0.001; // as evaluation/image_level.py
  const COLOUR = [230, 159, 0]; // orange of Okabe and Ito, as the overlays of `pneumo predict`
  const element = (name) => document.getElementById(`segment-${name}`);
  const { network } = window.pneumo;
  const state = { shown: null, threshold: null }; // null: the run's own operating point

  /** By a loop: `Uint8Array.from()` would take a second for the runtime. */
  function bytesOf(base64) {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  /** The runtime's parts come from scripts, not requests, which a page of file:// may not make. */
  const session = (async () => {
    const { wasm, glue } = window.pneumo.runtime;
    const url = URL.createObjectURL(new Blob([bytesOf(glue)], { type: "text/javascript" }));
    ort.env.wasm.wasmPaths = { mjs: url };
    ort.env.wasm.wasmBinary = (await xray.inflate(new Blob([bytesOf(wasm)]), "gzip")).buffer;
    ort.env.wasm.numThreads = 1; // more need headers that only a server can send
    return ort.InferenceSession.create(bytesOf(network.onnx), { executionProviders: ["wasm"] });
  })();

  /** Probability of each pixel, at the network's size, for its uint8 input. */
  async function forward(image) {
    const [runner, { size, flip }] = [await session, network];
    const once = async (data) => {
      const given = new ort.Tensor("float32", Float32Array.from(data), [1, size, size]);
      const found = await runner.run({ [runner.inputNames[0]]: given });
      return found[runner.outputNames[0]].data;
    };
    const mirror = (data) => data.map((_, i) => data[i + size - 1 - 2 * (i % size)]);
    const found = await once(image.data);
    if (!flip) return found;
    const other = mirror(await once(mirror(image.data)));
    return found.map((value, i) => (value + other[i]) / 2);
  }

  /** As inference/predict.py: without a frame, resized, through the network, back into the frame. */
  async function predict(bytes) {
    const start = performance.now();
    const { size } = network;
    const image = await xray.read(bytes);
    const bounds = xray.insideFrame(image);
    const input = xray.resize(xray.crop(image, bounds), size, size);
    const found = { data: await forward(input), width: size, height: size };
    const probability = put(found, bounds, image, size, size);
    const ranked = Float32Array.from(found.data).sort().reverse();
    const count = Math.max(1, Math.round(TOP_SHARE * ranked.length));
    const score = ranked.subarray(0, count).reduce((sum, value) => sum + value, 0) / count;
    return { image, input: input.data, found, bounds, probability, score, ms: performance.now() - start };
  }

  function put(found, [top, bottom, left, right], image, width, height) {
    const rows = [top, bottom].map((y) => Math.round((y / image.height) * height));
    const columns = [left, right].map((x) => Math.round((x / image.width) * width));
    const part = xray.resize(found, columns[1] - columns[0], rows[1] - rows[0]);
    const whole = new Float32Array(width * height);
    for (let y = 0; y < part.height; y++) {
      const line = part.data.subarray(y * part.width, (y + 1) * part.width);
      whole.set(line, (y + rows[0]) * width + columns[0]);
    }
    return whole;
  }

  // -- the picture

  function show(result, name) {
    const { image, found, bounds } = result;
    const scale = Math.min(1, LONGEST / Math.max(image.width, image.height));
    const [width, height] = [image.width, image.height].map((side) => Math.max(1, Math.round(scale * side)));
    const picture = xray.resize(image, width, height);
    const upsampled = put(found, bounds, image, width, height);
    state.shown = { ...result, picture, upsampled, name };
    draw();
  }

  function draw() {
    if (!state.shown) return;
    const { picture, upsampled, found, score, ms, name } = state.shown;
    const point = network.operating_point;
    const own = state.threshold === null;
    const threshold = own ? point.bottom_threshold : state.threshold;
    const [top, area] = own ? [point.top_threshold, point.min_area] : [threshold, 0];
    const above = found.data.filter((value) => value >= top).length;
    const outlined = above > 0 && above >= area * found.data.length;
    const canvas = element("picture");
    [canvas.width, canvas.height] = [picture.width, picture.height];
    const pixels = new ImageData(picture.width, picture.height);
    const tinted = element("overlay").checked;
    let count = 0;
    const inside = (i) => outlined && upsampled[i] >= threshold;
    for (let i = 0; i < upsampled.length; i++) {
      const marked = inside(i);
      count += marked;
      const x = i % picture.width;
      const edge = marked && !(inside(i - picture.width) && inside(i + picture.width)
        && x > 0 && inside(i - 1) && x < picture.width - 1 && inside(i + 1));
      const share = !tinted || !marked ? 0 : edge ? 1 : 0.3;
      COLOUR.forEach((value, c) => {
        pixels.data[4 * i + c] = (1 - share) * picture.data[i] + share * value;
      });
      pixels.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    state.shown.marked = count;
    element("threshold").value = threshold;
    element("threshold-value").textContent = threshold.toFixed(2) + (own ? " (the run's own)" : "");
    element("score").textContent = score.toFixed(3);
    element("area").textContent = count ? `${((100 * count) / upsampled.length).toFixed(2)} % of the image` : "nothing marked";
    canvas.setAttribute("aria-label", `X-ray ${name}, ${element("area").textContent}`);
    say(`${name}: ${picture.width} x ${picture.height} pixels shown, ${Math.round(ms)} ms`);
  }

  function say(text, failed = false) {
    element("status").textContent = text;
    element("status").classList.toggle("failed", failed);
  }

  async function open(bytes, name) {
    say(`${name}: reading ...`);
    window.pneumo.result = null;
    try {
      show(await predict(bytes), name);
      window.pneumo.result = state.shown;
    } catch (error) {
      say(`${name}: ${error.message ?? error}`, true);
      window.pneumo.result = { error: String(error.message ?? error) };
    }
  }

  const openFile = async (file) => file && open(new Uint8Array(await file.arrayBuffer()), file.name);

  element("file").addEventListener("change", (event) => openFile(event.target.files[0]));
  element("threshold").addEventListener("input", (event) => {
    state.threshold = Number(event.target.value);
    draw();
  });
  element("own").addEventListener("click", () => {
    state.threshold = null;
    draw();
  });
  element("overlay").addEventListener("change", draw);
  network.phantoms.forEach(({ png, name }) => {
    const button = document.createElement("button");
    button.type = "button";
    button.innerHTML = `<img alt="" src="data:image/png;base64,${png}">`;
    button.append(name);
    button.addEventListener("click", () => open(bytesOf(png), name));
    element("phantoms").append(button);
  });
  const drop = element("drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") openFile(event.dataTransfer.files[0]);
    });
  }
  window.pneumo.open = open;
  open(bytesOf(network.phantoms[0].png), network.phantoms[0].name);
})();
