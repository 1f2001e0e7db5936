// What the pages do in the browser. Each component calls its function when it appears; everything else hangs on the document, once.
window.cxr = (() => {
  const busy = (on) => {
    for (const id of ["cx-viewer", "cx-side", "cx-batch"]) document.getElementById(id)?.setAttribute("aria-busy", on);
  };
  const shown = (element) => element.isConnected && element.offsetParent !== null;

  /** A button, the page, the clipboard and, for one film, the camera: all of them send files to the same place. */
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
      const only = files.length < list.length ? `Only ${files[0].name} was taken, the first of ${list.length}. The page “Batch” takes many.` : "";
      if (!files.length) return;
      if (large) return say(`${large.name} is larger than ${limit >> 20} MB.`, true);
      busy(true);
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
        say(`That could not be sent: ${String(error?.message || error).replace(/^Error:\s*/, "") || "is the network there?"}`, true);
      }
      input.value = "";
    }

    say("");
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
    listen("click", (e) => e.target.closest("[data-index]") && say("")); // an example: what was said of an earlier film, or of the camera, is over
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
        video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: 1920 } });
        dialog.showModal();
        await video.play();
      } catch {
        stop();
        say("There is no camera here, or this page may not use it.", true);
      }
    });
    dialog.querySelector("[data-take]").addEventListener("click", () => {
      const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
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
      busy(true);
      trigger("select", { index: Number(button.dataset.index) });
    });
  }

  let point = null; // the operating point that the visitor chose

  /** After a component was filled anew: keep the visitor's operating point, and say the answer to those who listen. */
  function settle(element, trigger, props, upload, watch) {
    watch("value", () => {
      for (const input of element.querySelectorAll("input[type=radio]")) {
        if (input.value === point) input.checked = true;
        if (input.checked) decide(input);
      }
      tell(element);
    });
  }

  function decide(radio) {
    for (const part of radio.closest("[data-points]").querySelectorAll("[data-point]")) part.hidden = part.dataset.point !== radio.value;
  }

  function tell(element) {
    const said = element.querySelector("[data-said]");
    if (said) document.getElementById("cx-live").textContent = said.innerText.replace(/\s*\n\s*/g, ". ");
  }

  function sort(button) {
    const head = button.closest("th");
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const key = (row) => row.cells[head.cellIndex].dataset.order ?? row.cells[head.cellIndex].innerText;
    const order = (a, b) => String(key(a)).localeCompare(String(key(b)), undefined, { numeric: true });
    const numbers = (a, b) => key(a) - key(b);
    const compare = body.rows[0]?.cells[head.cellIndex].dataset.order === undefined ? order : numbers;
    body.append(...[...body.rows].sort((a, b) => (down ? compare(b, a) : compare(a, b))));
  }

  for (const event of ["dragover", "drop"]) document.addEventListener(event, (e) => e.preventDefault()); // never leave the page for a film
  document.addEventListener("input", ({ target }) => {
    if (target.matches(".cx-cut")) {
      target.parentElement.style.setProperty("--cut", `${target.value}%`);
    } else if (target.matches("[data-points] [type=radio]")) {
      point = target.value;
      decide(target);
      tell(target.closest("[data-points]"));
    }
  });
  document.addEventListener("click", (e) => {
    const button = e.target.closest?.("th button");
    if (button) sort(button);
  });

  const done = () => busy(false);
  const failed = () => {
    const place = [...document.querySelectorAll(".cx-said")].find(shown);
    if (!place) return;
    place.textContent = "The demo is busy or cannot be reached: please try again in a minute.";
    place.classList.add("cx-wrong");
  };
  return { drop, examples, settle, done, failed };
})();
