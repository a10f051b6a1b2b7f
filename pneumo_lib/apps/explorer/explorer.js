// The picture area of the case explorer: pictures, keys, zoom, uploaded X-rays.
// Text that comes from files is only ever set as `textContent`: it cannot become markup.

const CHUNK = 1 << 20; // bytes of a message; notebook servers refuse 10 MiB

function render({ model, el }) {
  const make = (tag, className, text = "") => {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    return node;
  };
  const root = make("div", "pneumo-viewer");
  root.tabIndex = 0;
  root.dataset.lmSuppressShortcuts = "true"; // else arrow keys also move JupyterLab's cursor
  const stage = make("div", "pneumo-stage");
  const bar = make("div", "pneumo-bar");
  root.append(stage, bar);
  el.append(root);

  // -- pictures, all under one zoom

  const view = { scale: 1, x: 0, y: 0 }; // x and y as fractions of the frame
  const zoomText = make("span", "pneumo-zoom", "×1");

  function place() {
    const room = (view.scale - 1) / 2; // a picture fills its frame
    view.x = Math.min(room, Math.max(-room, view.x));
    view.y = Math.min(room, Math.max(-room, view.y));
    for (const picture of stage.querySelectorAll("img")) {
      const shift = `${100 * view.x}%, ${100 * view.y}%`;
      picture.style.transform = `translate(${shift}) scale(${view.scale})`;
      picture.style.imageRendering = view.scale > 2 ? "pixelated" : "auto";
    }
    zoomText.textContent = `×${Number(view.scale.toFixed(1))}`;
  }

  function zoom(factor, at = { x: 0, y: 0 }) {
    const scale = Math.min(16, Math.max(1, view.scale * factor));
    view.x = at.x - ((at.x - view.x) * scale) / view.scale; // the point under the pointer stays
    view.y = at.y - ((at.y - view.y) * scale) / view.scale;
    view.scale = scale;
    place();
  }

  function pointIn(event) {
    const frame = event.target.closest(".pneumo-frame")?.getBoundingClientRect();
    if (!frame) return undefined;
    const x = (event.clientX - frame.left) / frame.width - 0.5;
    return { x, y: (event.clientY - frame.top) / frame.height - 0.5, frame };
  }

  function show() {
    const pictures = model.get("pictures");
    while (stage.children.length > pictures.length) stage.lastChild.remove();
    while (stage.children.length < pictures.length) {
      const frame = make("figure", "pneumo-frame");
      const picture = make("img", "");
      picture.draggable = false;
      picture.decoding = "sync";
      frame.append(picture, make("figcaption", ""));
      stage.append(frame);
    }
    pictures.forEach((bytes, number) => {
      const picture = stage.children[number].firstChild;
      URL.revokeObjectURL(picture.src); // of the picture before, loaded or not
      picture.onload = () => (root.dataset.painted = Number(root.dataset.painted ?? 0) + 1);
      picture.src = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
    });
    label();
    place();
  }

  function label() {
    model.get("captions").slice(0, stage.children.length).forEach((text, number) => {
      const [picture, caption] = stage.children[number].children;
      picture.alt = `X-ray with overlays, ${text}`;
      caption.textContent = text;
    });
  }

  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return; // a plain wheel scrolls the page
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, pointIn(event));
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => zoom(2, pointIn(event)));
  stage.addEventListener("pointerdown", (event) => {
    if (pointIn(event)) stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    const frame = stage.firstChild;
    if (!frame || !stage.hasPointerCapture(event.pointerId)) return;
    view.x += event.movementX / frame.clientWidth;
    view.y += event.movementY / frame.clientHeight;
    place();
  });

  // -- keys and buttons

  const zoomKeys = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 1 / 16 };

  function press(key) {
    if (key in zoomKeys) zoom(zoomKeys[key]);
    else model.send({ kind: "key", key });
  }

  root.addEventListener("keydown", (event) => {
    const ours = /^(Arrow(Left|Right|Up|Down)|[0-5]|[-+=])$/.test(event.key);
    if (!ours || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    press(event.key);
  });
  // Hovering over the picture gives it the keyboard, unless text is being typed.
  root.addEventListener("mouseenter", () => {
    if (!document.activeElement?.matches("input, textarea, .cm-content")) {
      root.focus({ preventScroll: true });
    }
  });

  const button = (text, title, act) => {
    const node = make("button", "", text);
    node.type = "button";
    node.title = title;
    node.setAttribute("aria-label", title);
    node.addEventListener("click", act);
    return node;
  };
  const position = make("span", "pneumo-position");
  const showPosition = () => (position.textContent = model.get("position"));
  const file = make("input", "pneumo-file");
  file.type = "file";
  file.accept = model.get("suffixes").join(",");
  bar.append(
    button("◀", "previous case (left arrow key)", () => press("ArrowLeft")),
    position,
    button("▶", "next case (right arrow key)", () => press("ArrowRight")),
    make("span", "pneumo-gap"),
    button("−", "zoom out (minus key)", () => press("-")),
    zoomText,
    button("+", "zoom in (plus key)", () => press("+")),
    make("span", "pneumo-gap"),
    button("Open an X-ray …", "PNG, JPEG or DICOM; or drop it on the picture", () => file.click()),
    file,
  );

  // -- uploaded files, in pieces

  async function upload(chosen) {
    if (!chosen) return;
    const { name, size } = chosen;
    if (size > model.get("max_bytes")) return model.send({ kind: "too large", name, size });
    for (let start = 0; start === 0 || start < size; start += CHUNK) {
      const bytes = await chosen.slice(start, start + CHUNK).arrayBuffer();
      const last = start + CHUNK >= size;
      model.send({ kind: "upload", name, first: start === 0, last }, undefined, [bytes]);
    }
  }

  file.addEventListener("change", async () => {
    await upload(file.files[0]);
    file.value = ""; // so that the same file can be chosen again
  });
  root.addEventListener("dragover", (event) => event.preventDefault());
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    upload(event.dataTransfer.files[0]);
  });

  model.on("change:pictures", show);
  model.on("change:captions", label); // captions may change alone
  model.on("change:position", showPosition);
  showPosition();
  show();
}

export default { render };
