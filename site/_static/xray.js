/* From the bytes of a file to the network's input, by the rules of pneumo_lib/data/images.py,
   data/dicom_grey.py and OpenCV's INTER_AREA, so that the page and pl.predict() agree. An image is
   {data: Uint8Array or Float32Array of height * width, width, height}. */
"use strict";

const xray = (() => {
  const MOST_PIXELS = 2 ** 26; // a canvas holds no more everywhere

  /** Rounds ties to the even number, as NumPy and OpenCV do. */
  const rint = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

  // -- files

  async function read(bytes) {
    const starts = (...codes) => codes.every((code, i) => bytes[i] === code);
    const has = (text, at) => [...text].every((c, i) => bytes[at + i] === c.charCodeAt(0));
    if (has("DICM", 128)) return readDicom(bytes);
    if (starts(0x89, 0x50, 0x4e, 0x47)) {
      return (await readDeepPng(bytes)) ?? decode([bytes], "image/png");
    }
    if (starts(0xff, 0xd8)) return decode([bytes], "image/jpeg");
    throw new Error("A file must be PNG, JPEG or DICOM.");
  }

  /** Grey levels of what the browser itself can decode. */
  async function decode(parts, type, imageOrientation = "from-image") {
    let bitmap;
    try {
      const options = { imageOrientation, colorSpaceConversion: "none", premultiplyAlpha: "none" };
      bitmap = await createImageBitmap(new Blob(parts, { type }), options);
    } catch {
      throw new Error("An image must be a complete PNG or JPEG file.");
    }
    const { width, height } = bitmap;
    checkSize(width, height);
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const rgba = context.getImageData(0, 0, width, height).data;
    const data = new Uint8Array(width * height);
    // ITU-R BT.601 as libpng and libjpeg round it
    const [red, green, blue, half] = type === "image/png" ? [9797, 19234, 3737, 0] : [9798, 19235, 3735, 16384];
    for (let i = 0; i < data.length; i++) {
      data[i] = (rgba[4 * i] * red + rgba[4 * i + 1] * green + rgba[4 * i + 2] * blue + half) >> 15;
    }
    return { data, width, height };
  }

  function checkSize(width, height) {
    if (width * height > MOST_PIXELS || !(width * height)) {
      throw new Error(`An image must have 1 to ${MOST_PIXELS} pixels. Received: ${width} x ${height}.`);
    }
  }

  /** A grey PNG of 16 bits, which a canvas would cut to 8; null for all others. */
  async function readDeepPng(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const [depth, kind, interlaced] = [bytes[24], bytes[25], bytes[28]];
    if (depth !== 16 || (kind !== 0 && kind !== 4)) return null;
    if (interlaced) throw new Error("A PNG of 16 bits must not be interlaced.");
    const [width, height, channels] = [view.getUint32(16), view.getUint32(20), kind ? 2 : 1];
    checkSize(width, height);
    const parts = [];
    for (let at = 8; at + 12 <= bytes.length; at += view.getUint32(at) + 12) {
      const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
      if (name === "IDAT") parts.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
    }
    const raw = await inflate(new Blob(parts), "deflate");
    const step = 2 * channels;
    const stride = step * width;
    if (raw.length < (stride + 1) * height) throw new Error("The PNG file is not complete.");
    const data = new Uint16Array(width * height);
    let above = new Uint8Array(stride);
    for (let y = 0; y < height; y++) {
      const line = raw.subarray(y * (stride + 1) + 1, (y + 1) * (stride + 1));
      unfilter(raw[y * (stride + 1)], line, above, step);
      for (let x = 0; x < width; x++) data[y * width + x] = line[x * step] * 256 + line[x * step + 1];
      above = line;
    }
    const table = greyTable(Float64Array.from({ length: 65536 }, (_, i) => i), data, 16, null, false);
    return { data: Uint8Array.from(data, (code) => table[code]), width, height };
  }

  async function inflate(blob, format) {
    const stream = blob.stream().pipeThrough(new DecompressionStream(format));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /** PNG filters, in place (W3C PNG, 9.2). */
  function unfilter(filter, line, above, step) {
    for (let i = 0; i < line.length; i++) {
      const [left, up] = [i < step ? 0 : line[i - step], above[i]];
      const corner = i < step ? 0 : above[i - step];
      if (filter === 1) line[i] += left;
      else if (filter === 2) line[i] += up;
      else if (filter === 3) line[i] += (left + up) >> 1;
      else if (filter === 4) {
        const [a, b, c] = [up - corner, left - corner, left + up - 2 * corner].map(Math.abs);
        line[i] += a <= b && a <= c ? left : b <= c ? up : corner;
      }
    }
  }

  // -- DICOM: plain files; what would need more of the standard is refused, not guessed

  const REFUSED = {
    x00281101: "a palette",
    x00283000: "a Modality LUT",
    x00283010: "a VOI LUT",
    x00280120: "pixel padding",
    x52009229: "functional groups",
  };

  async function readDicom(bytes) {
    const file = dicomParser.parseDicom(bytes);
    const number = (tag, otherwise) => file.uint16(tag) ?? otherwise;
    const decimal = (tag) => (file.string(tag) ? parseFloat(file.string(tag).replace(",", ".")) : NaN);
    const found = Object.keys(REFUSED).find((tag) => file.elements[tag]);
    if (found) throw new Error(`The page reads plain DICOM; this file has ${REFUSED[found]}: use pneumo predict.`);
    const [height, width] = [number("x00280010"), number("x00280011")];
    const [allocated, bits] = [number("x00280100"), number("x00280101")];
    const frames = file.intString("x00280008") ?? 1;
    if (number("x00280002", 1) !== 1 || frames !== 1) throw new Error("A DICOM file must hold one grey image.");
    checkSize(width, height);
    const { codes, shift } = await storedPixels(file, bytes, width, height, allocated, bits);
    const masked = codes.map((code) => (code >> shift) & (2 ** bits - 1));
    const sign = number("x00280103", 0) << (bits - 1);
    const [slope, intercept] = [decimal("x00281053"), decimal("x00281052")];
    if (slope === 0) throw new Error("The page reads plain DICOM; this file has a rescale slope of 0: use pneumo predict.");
    const values = Float64Array.from({ length: 2 ** bits }, (_, code) =>
      ((code ^ sign) - sign) * (slope || 1) + (intercept || 0));
    const window = { centre: decimal("x00281050"), width: decimal("x00281051"), shape: file.string("x00281056") };
    const shape = file.string("x20500020");
    const inverted = shape ? shape === "INVERSE" : file.string("x00280004") === "MONOCHROME1";
    const table = greyTable(values, masked, bits, window.width > 0 && !isNaN(window.centre) ? window : null, inverted);
    return { data: Uint8Array.from(masked, (code) => table[code]), width, height };
  }

  async function storedPixels(file, bytes, width, height, allocated, bits) {
    const element = file.elements.x7fe00010;
    const syntax = file.string("x00020010") ?? "1.2.840.10008.1.2";
    const shift = Math.max(0, (file.uint16("x00280102") ?? bits - 1) + 1 - bits);
    if (syntax === "1.2.840.10008.1.2.4.50" && bits === 8) {
      const parts = element.fragments.map((p) => file.byteArray.subarray(p.position, p.position + p.length));
      const image = await decode(parts, "image/jpeg", "none");
      if (image.width !== width || image.height !== height) throw new Error("The JPEG in the DICOM file has another size than the file names.");
      return { codes: image.data, shift: 0 };
    }
    const plain = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"];
    if (!plain.includes(syntax) || ![8, 16].includes(allocated)) {
      throw new Error(`The page reads uncompressed DICOM and JPEG baseline; this file has ${syntax}: use pneumo predict.`);
    }
    if (element.length * 8 < width * height * allocated) throw new Error("The DICOM file is not complete.");
    const start = element.dataOffset;
    if (allocated === 8) return { codes: bytes.slice(start, start + width * height), shift };
    const view = new DataView(bytes.buffer, bytes.byteOffset + start);
    const little = syntax !== plain[2];
    return { codes: Uint16Array.from({ length: width * height }, (_, i) => view.getUint16(2 * i, little)), shift };
  }

  /** Grey level of each code: window, or the middle 99 % of the pixels; see data/dicom_grey.py. */
  function greyTable(values, codes, bits, window, inverted) {
    const share = window ? windowed(window) : stretched(values, codes, bits);
    return Uint8Array.from(values, (value) => {
      const level = rint(255 * Math.min(1, Math.max(0, share(value))));
      return inverted ? 255 - level : level;
    });
  }

  /** PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2. */
  function windowed({ centre, width, shape }) {
    if (shape === "SIGMOID") return (value) => (1 + Math.tanh((2 * (value - centre)) / width)) / 2;
    if (shape !== "LINEAR_EXACT" && width >= 1) [centre, width] = [centre - 0.5, width - 1];
    const low = centre - width / 2;
    return (value) => (value > centre + width / 2 ? 1 : (value - low) / (width || 1));
  }

  function stretched(values, codes, bits) {
    let order = Array.from(values.keys());
    const counts = new Float64Array(values.length);
    codes.forEach((code) => counts[code]++);
    if (bits > 8) order = order.filter((code) => counts[code]);
    order.sort((a, b) => values[a] - values[b]);
    let [low, high] = [values[order[0]], values[order[order.length - 1]]];
    const inner = order.filter((c) => counts[c] && values[c] > low && values[c] < high);
    if (bits > 8 && inner.length) {
      const total = inner.reduce((sum, code) => sum + counts[code], 0);
      const quantile = (q) => {
        let sum = 0;
        return values[inner.find((code) => (sum += counts[code]) / total >= q)];
      };
      const ends = [quantile(0.005), quantile(0.995)];
      if (ends[0] < ends[1]) [low, high] = ends;
    }
    return (value) => (value - low) / (high - low || 1);
  }

  // -- sizes

  /** [top, bottom, left, right] in pixels, without a frame of one grey level on all four sides. */
  function insideFrame({ data, width, height }) {
    const at = (y, x) => data[y * width + x];
    const sides = [
      Array.from({ length: width }, (_, x) => at(0, x)),
      Array.from({ length: width }, (_, x) => at(height - 1, x)),
      Array.from({ length: height }, (_, y) => at(y, 0)),
      Array.from({ length: height }, (_, y) => at(y, width - 1)),
    ];
    const sorted = sides.flat().sort((a, b) => a - b);
    const level = (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
    const near = (value) => Math.abs(value - level) <= 2;
    const whole = [0, height, 0, width];
    if (sides.some((side) => side.filter(near).length / side.length < 0.9)) return whole;
    const [rows, columns] = [new Float64Array(height), new Float64Array(width)];
    data.forEach((value, i) => {
      if (near(value)) (rows[Math.floor(i / width)]++, columns[i % width]++);
    });
    const bounds = [];
    for (const [counts, across] of [[rows, width], [columns, height]]) {
      const inside = Array.from(counts.keys()).filter((i) => counts[i] / across < 0.9);
      const [first, last] = [inside[0], inside[inside.length - 1]];
      if (!inside.length || last + 1 - first < counts.length / 4) return whole;
      bounds.push(first, last + 1);
    }
    return bounds;
  }

  function crop({ data, width }, [top, bottom, left, right]) {
    const part = new data.constructor((bottom - top) * (right - left));
    for (let y = top; y < bottom; y++) {
      part.set(data.subarray(y * width + left, y * width + right), (y - top) * (right - left));
    }
    return { data: part, width: right - left, height: bottom - top };
  }

  /** Area averages where the image shrinks, linear where it grows, as images.resize_image(). */
  function resize(image, width, height) {
    const [w, h] = [Math.min(width, image.width), Math.min(height, image.height)];
    if (w !== image.width || h !== image.height) image = shrink(image, w, h);
    return width === w && height === h ? image : grow(image, width, height);
  }

  /** Source pixels of each target pixel with their weights: OpenCV's computeResizeAreaTab(). */
  function areas(from, to) {
    const scale = from / to;
    return Array.from({ length: to }, (_, i) => {
      const [start, end] = [i * scale, i * scale + scale];
      const cell = Math.min(scale, from - start);
      const last = Math.min(Math.floor(end), from - 1);
      const first = Math.min(Math.ceil(start), last);
      const found = [];
      if (first - start > 1e-3) found.push([first - 1, Math.fround((first - start) / cell)]);
      for (let at = first; at < last; at++) found.push([at, Math.fround(1 / cell)]);
      if (end - last > 1e-3) found.push([last, Math.fround(Math.min(end - last, 1, cell) / cell)]);
      return found;
    });
  }

  function shrink(image, width, height) {
    const [sx, sy] = [image.width / width, image.height / height];
    const whole = Number.isInteger(sx) && Number.isInteger(sy);
    const result = { data: new image.data.constructor(width * height), width, height };
    const store = (i, value) => {
      result.data[i] = image.data instanceof Uint8Array ? Math.min(255, rint(value)) : value;
    };
    if (whole) { // sums of whole pixels: OpenCV's other path, which rounds 2 x 2 up
      const [twice, share] = [sx === 2 && sy === 2, Math.fround(1 / (sx * sy))];
      for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
        let sum = 0;
        for (let v = 0; v < sy; v++) for (let u = 0; u < sx; u++) {
          sum += image.data[(y * sy + v) * image.width + x * sx + u];
        }
        const up = twice && image.data instanceof Uint8Array;
        store(y * width + x, up ? (sum + 2) >> 2 : Math.fround(sum * share));
      }
      return result;
    }
    const [columns, rows] = [areas(image.width, width), areas(image.height, height)];
    const line = new Float32Array(width); // 32 bits, as in OpenCV
    const sums = new Float32Array(width);
    rows.forEach((sources, y) => {
      sums.fill(0);
      for (const [row, weight] of sources) {
        line.fill(0);
        columns.forEach((pixels, x) => {
          for (const [u, share] of pixels) line[x] += Math.fround(image.data[row * image.width + u] * share);
        });
        for (let x = 0; x < width; x++) sums[x] += Math.fround(line[x] * weight);
      }
      sums.forEach((value, x) => store(y * width + x, value));
    });
    return result;
  }

  function grow(image, width, height) {
    const axis = (from, to) => Array.from({ length: to }, (_, i) => {
      const at = Math.min(Math.max(((i + 0.5) * from) / to - 0.5, 0), from - 1);
      const first = Math.floor(at);
      return [first, Math.min(first + 1, from - 1), at - first];
    });
    const [columns, rows] = [axis(image.width, width), axis(image.height, height)];
    const result = { data: new image.data.constructor(width * height), width, height };
    // grey levels: in whole numbers of 11 bits, as in OpenCV
    const whole = image.data instanceof Uint8Array;
    const pair = (share) => (whole ? [rint((1 - share) * 2048), rint(share * 2048)] : [1 - share, share]);
    rows.forEach(([top, bottom, v], y) => columns.forEach(([left, right, u], x) => {
      const [[before, after], [above, below]] = [pair(u), pair(v)];
      const mix = (row) => image.data[row * image.width + left] * before + image.data[row * image.width + right] * after;
      const part = (weight, value) => (whole ? (weight * (value >> 4)) >> 16 : weight * value);
      const sum = part(above, mix(top)) + part(below, mix(bottom));
      result.data[y * width + x] = whole ? (sum + 2) >> 2 : sum;
    }));
    return result;
  }

  return { read, inflate, insideFrame, crop, resize };
})();
