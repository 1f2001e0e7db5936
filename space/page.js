// What the pages do in the browser. Components call their functions when they appear; the rest listens on the document.
window.cxr = (() => {
  const busy = (on) => {
    for (const id of ["cx-viewer", "cx-side", "cx-batch"]) document.getElementById(id)?.setAttribute("aria-busy", on);
  };
  const shown = (element) => element.isConnected && element.offsetParent !== null;

  let sendOne = null; // sends one image
  let last = null; // what sends the last image again
  let batch = new Map(); // the files of the last batch, by name

  /** The button, the page, the clipboard and, for one image, the camera: all send files to the same place. */
  function drop(element, trigger, props, upload) {
    const { many, limit } = props;
    const input = element.querySelector("input[type=file]");
    const said = element.querySelector(".cx-said");
    const hint = matchMedia("(pointer: coarse)").matches ? "" : said.textContent; // fingers neither drop nor paste
    const say = (text, wrong = false) => {
      said.textContent = text || hint;
      said.classList.toggle("cx-wrong", wrong);
    };

    async function send(list) {
      const files = many ? [...list] : [...list].slice(0, 1);
      const large = files.find((file) => file.size > limit);
      const first = `Only ${files[0]?.name} was taken, the first of ${list.length}. The page “Batch” takes many.`;
      const only = files.length < list.length ? first : "";
      if (!files.length) return;
      if (!many) last = () => send(files);
      if (large) return say(`${large.name} is larger than ${limit >> 20} MB.`, true);
      busy(true);
      if (many) batch = new Map(files.map((file) => [file.name, files.filter((other) => other.name === file.name)]));
      try {
        const sent = [];
        for (const [i, file] of files.entries()) {
          say(files.length > 1 ? `Sending ${i + 1} of ${files.length}` : "Sending");
          const { path } = await upload(file);
          sent.push({ path, orig_name: file.name });
        }
        props.value = sent;
        trigger("upload");
        say(only, only !== "");
      } catch (error) {
        busy(false);
        const reason = String(error?.message || error).replace(/^Error:\s*/, "");
        say(`That could not be sent: ${reason || "are you online?"}`, true);
      }
      input.value = "";
    }

    say("");
    if (!many) sendOne = send;
    input.addEventListener("change", () => send(input.files));
    const listen = (event, act) =>
      document.addEventListener(event, function here(e) {
        if (!element.isConnected) document.removeEventListener(event, here);
        else if (shown(element)) act(e);
      });
    const target = (on) => document.body.toggleAttribute("data-dropping", on);
    listen("dragover", (e) => e.dataTransfer?.types.includes("Files") && target(true));
    listen("dragleave", (e) => e.relatedTarget || target(false));
    listen("drop", (e) => {
      if (!e.dataTransfer?.files.length) return;
      target(false);
      send(e.dataTransfer.files);
    });
    listen("click", (e) => e.target.closest("[data-index]") && say("")); // an example: a message is out of date
    listen("paste", (e) => e.clipboardData?.files.length && send(e.clipboardData.files));
    if (!many) camera(element, send, say);
  }

  function camera(element, send, say) {
    const dialog = element.querySelector("dialog");
    const video = dialog.querySelector("video");
    const stop = () => {
      for (const track of video.srcObject?.getTracks() ?? []) track.stop();
      video.srcObject = null;
    };
    element.querySelector("[data-camera]").addEventListener("click", async () => {
      try {
        const wanted = { video: { facingMode: "environment", width: 1920 } };
        video.srcObject = await navigator.mediaDevices.getUserMedia(wanted);
        dialog.showModal();
        await video.play();
      } catch {
        stop();
        say("There is no camera here, or this page may not use it.", true);
      }
    });
    dialog.querySelector("[data-take]").addEventListener("click", () => {
      const size = { width: video.videoWidth, height: video.videoHeight };
      const canvas = Object.assign(document.createElement("canvas"), size);
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => send([new File([blob], "camera.jpg", { type: blob.type })]), "image/jpeg", 0.95);
      dialog.close();
    });
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", stop);
  }

  function examples(element, trigger) {
    element.addEventListener("click", (e) => {
      const button = e.target.closest("[data-index]");
      if (!button) return;
      last = () => button.click();
      busy(true);
      trigger("select", { index: Number(button.dataset.index) });
    });
  }

  let point = null; // the operating point that the visitor chose
  let own = 50; // the visitor's own threshold, in per cent

  /** After a component was filled: keep the visitor's operating point, and announce the answer. */
  function settle(element, trigger, props, upload, watch) {
    watch("value", () => {
      for (const number of element.querySelectorAll("[data-own]")) number.value = own;
      for (const radio of element.querySelectorAll("input[type=radio]")) {
        if (radio.value === "own") radio.dataset.threshold = own / 100;
        if (radio.value === point) radio.checked = true;
      }
      decide(element);
      for (const button of element.querySelectorAll("[data-open]")) {
        button.disabled = batch.get(button.textContent)?.length !== 1;
      }
      const small = matchMedia("(max-width: 899px)").matches;
      if (tell(element) && small && element.id === "cx-side") element.scrollIntoView({ block: "start" });
    });
  }

  const percent = (p) => `${+(100 * p).toFixed(1)}%`;
  const shownLabel = (label) => (label === label.toUpperCase() ? label[0] + label.slice(1).toLowerCase() : label);

  /** Show the answers at the chosen threshold. */
  function decide(element) {
    const box = element.querySelector("[data-points]") ?? element.closest("[data-points]");
    const radio = box?.querySelector("input[type=radio]:checked");
    const threshold = Number(radio?.dataset.threshold);
    const axis = box?.querySelector(".cx-axis[data-p]");
    if (radio && axis) {
      const side = Number(axis.dataset.p >= threshold);
      axis.style.setProperty("--threshold", threshold);
      for (const part of box.querySelectorAll("[data-point]")) {
        part.hidden = part.dataset.point !== radio.value || Number(part.dataset.side ?? side) !== side;
      }
      for (const part of box.querySelectorAll("span[data-threshold]")) part.textContent = percent(threshold);
    }
    const counts = {};
    for (const row of box?.querySelectorAll("tr[data-status]") ?? []) {
      if (row.dataset.p) {
        row.dataset.label = !radio || row.dataset.p >= threshold ? row.dataset.yes : row.dataset.no;
        row.cells[2].textContent = shownLabel(row.dataset.label);
      }
      const answer = row.cells[2].textContent.toLowerCase();
      counts[answer] = (counts[answer] ?? 0) + 1;
    }
    const summary = box?.querySelector("[data-counts]");
    if (summary) summary.textContent = `: ${Object.entries(counts).map(([answer, n]) => `${n} ${answer}`).join(", ")}`;
  }

  function tell(element) {
    const said = element.querySelector("[data-said]");
    if (!said || said.closest(".cx-waiting")) return false;
    document.getElementById("cx-live").textContent = said.innerText.replace(/\s*\n\s*/g, ". ");
    return true;
  }

  function save(blob, name) {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  /** The table at the chosen threshold; a name must not become a formula of a spreadsheet. */
  function saveTable(box) {
    const threshold = box.querySelector("input[type=radio]:checked")?.dataset.threshold ?? "";
    const cell = (text) => `"${String(text).replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
    const rows = [["source", "status", "label", "probability", "threshold", "reasons"]];
    for (const { cells, dataset } of box.querySelectorAll("tbody tr")) {
      const answer = dataset.p ? [dataset.label, dataset.p, threshold] : ["", "", ""];
      rows.push([cells[1].innerText, dataset.status, ...answer, cells[4].innerText]);
    }
    const lines = rows.map((row) => row.map(cell).join(","));
    save(new Blob(["\ufeff", lines.join("\r\n"), "\r\n"], { type: "text/csv" }), "cxrlib.csv");
  }

  /** The image and its heatmap as they are shown, with the verdict and the disclaimer below. */
  function saveImage(figure) {
    const [base, heat] = figure.querySelectorAll("img");
    const text = [...document.querySelectorAll("#cx-side .cx-lead, #cx-side [data-said] .cx-word, #cx-note")];
    const lines = text.filter((part) => part.checkVisibility()).map((part) => part.innerText.trim());
    const [width, height] = [base.naturalWidth, base.naturalHeight];
    const line = Math.max(12, width / 45);
    const size = { width, height: height + line * (1.4 * lines.length + 0.6) };
    const canvas = Object.assign(document.createElement("canvas"), size);
    const pen = canvas.getContext("2d");
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.filter = getComputedStyle(base).filter;
    pen.drawImage(base, 0, 0);
    pen.filter = "none";
    pen.globalAlpha = heat ? getComputedStyle(heat).opacity : 1;
    if (heat) pen.drawImage(heat, 0, 0, width, height);
    Object.assign(pen, { globalAlpha: 1, fillStyle: "#fff", font: `${line}px system-ui, sans-serif` });
    lines.forEach((words, i) => pen.fillText(words, line / 2, height + line * (1.4 * i + 1.3), width - line));
    canvas.toBlob((blob) => save(blob, "cxrlib.png"));
  }

  function zoom(figure, factor) {
    const frame = figure.querySelector(".cx-frame");
    const before = Number(frame.style.getPropertyValue("--zoom") || 1);
    const after = Math.min(8, Math.max(1, factor ? before * factor : 1));
    const [x, y] = [frame.scrollLeft + frame.clientWidth / 2, frame.scrollTop + frame.clientHeight / 2];
    frame.style.setProperty("--zoom", after);
    frame.scrollTo((x * after) / before - frame.clientWidth / 2, (y * after) / before - frame.clientHeight / 2);
  }

  function sort(button) {
    const head = button.closest("th");
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const key = (row) => row.cells[head.cellIndex].dataset.order ?? row.cells[head.cellIndex].innerText;
    const order = (a, b) => String(key(a)).localeCompare(String(key(b)), undefined, { numeric: true });
    const numbers = (a, b) => key(a) - key(b);
    const compare = body.rows[0]?.cells[head.cellIndex].dataset.order === undefined ? order : numbers;
    body.append(...[...body.rows].sort((a, b) => (down ? compare(b, a) : compare(a, b))));
  }

  document.addEventListener("dragover", (e) => e.preventDefault()); // a dropped file never replaces the page
  document.addEventListener("drop", (e) => e.preventDefault());
  document.addEventListener("input", ({ target }) => {
    if (target.dataset.variable) {
      target.closest(".cx-figure").style.setProperty(target.dataset.variable, target.value / 100);
    } else if (target.matches("[data-pretest]")) {
      const box = target.closest("details");
      const odds = (box.dataset.ratio * target.value) / (100 - target.value);
      box.querySelector("output").textContent = `${target.value}%`;
      box.querySelector("[data-after]").textContent = percent(odds / (1 + odds));
    } else if (target.closest("[data-points]")) {
      const radio = target.closest("label").querySelector("[type=radio]");
      if (target.matches("[data-own]")) {
        own = Math.min(100, Math.max(0, Number(target.value)));
        radio.checked = true;
        radio.dataset.threshold = own / 100;
      }
      point = radio.value;
      decide(target);
      tell(target.closest("[data-points]"));
    }
  });
  document.addEventListener("click", ({ target }) => {
    const button = target.closest?.("button");
    const figure = button?.closest(".cx-figure");
    if (button?.matches("th button")) sort(button);
    else if (button?.dataset.zoom) zoom(figure, Number(button.dataset.zoom));
    else if (button?.matches("[data-save]")) saveImage(figure);
    else if (button?.matches("[data-print]")) print();
    else if (button?.matches("[data-csv]")) saveTable(button.closest("[data-points]"));
    else if (button?.matches("[data-open]")) {
      document.querySelector("#cx-tabs [role=tab]").click();
      sendOne(batch.get(button.textContent));
    }
  });
  document.addEventListener("dblclick", ({ target }) => {
    const frame = target.closest?.(".cx-frame");
    if (frame) zoom(frame.parentElement, frame.style.getPropertyValue("--zoom") > 1 ? 0 : 2.5);
  });
  document.addEventListener("pointermove", (e) => {
    const frame = e.target.closest?.(".cx-frame");
    if (frame && e.pointerType === "mouse" && e.buttons === 1) frame.scrollBy(-e.movementX, -e.movementY);
  });

  const done = () => busy(false);
  const failed = () => {
    const place = [...document.querySelectorAll(".cx-said")].find(shown);
    if (!place) return;
    place.textContent = "The demo is busy or cannot be reached: please try again in a minute.";
    place.classList.add("cx-wrong");
  };
  const again = () => last?.(); // by another model
  return { drop, examples, settle, done, failed, again };
})();
