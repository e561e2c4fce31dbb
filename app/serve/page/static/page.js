// What only a browser can do: seeking, keys, the theme, the webcam, uploads, noticing that the server is gone.
// What the page shows comes from the server as HTML; buttons carry data-do and go to Python through `act`.
(() => {
  "use strict";
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);
  const within = (event, selector) => (event.target instanceof Element ? event.target.closest(selector) : null);

  // The way to Python ------------------------------------------------------------------------------------------------

  let trigger = null;
  const early = []; // before the server has said what is shown, it knows nothing of this page
  function act(name, what = {}) {
    if (trigger && shown.view) trigger(name, { what });
    else early.push([name, what]);
  }
  function connect(gradioTrigger) { // for the events that page.py listens to
    trigger = gradioTrigger;
    sync();
  }

  // What is shown: the server writes it into #state --------------------------------------------------------------------

  let shown = {};
  function sync() {
    const state = $("state");
    if (!state) return;
    const before = shown.stream, acts = shown.acts;
    shown = { ...state.dataset };
    early.splice(0).forEach(([name, what]) => act(name, what));
    root.dataset.view = shown.view;
    setBusy(Boolean(shown.busy));
    if (acts !== shown.acts) say(shown.busy || shown.told || "", !shown.busy);
    if (before !== shown.stream) {
      live();
      remember(shown.stream);
      opens = Boolean(shown.stream);
      setTimeout(() => { // the conversation came with it, or comes next
        if (opens && document.querySelector(".turn")) toNewest();
      }, 200);
      if (shown.stream && $("source")) $("source").value = "";
    }
    if (camera?.shown && !` ${shown.streams} `.includes(` ${camera.stream} `)) stopCamera();
    if (camera && camera.stream === shown.stream) camera.shown = true;
    $("to-live").hidden = $("tell-form").hidden = Boolean(shown.over); // what is over is not looked at any more
    playLive();
    if (!moment) $("waiting").textContent = shown.over ? (shown.poster ? "" : NO_PICTURE) : "Waiting for the first picture…";
    restoreDraft();
    explain();
    showTab();
  }
  let tab = null; // the one that was last brought into sight
  function showTab() {
    const current = document.querySelector('.tab[aria-current="true"]');
    const stream = current?.dataset.stream || "";
    if (stream === shown.stream && stream !== tab) {
      tab = stream;
      current?.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    if (!shown.stream) tab = null;
  }
  function explain() { // what the chosen model and way to remember are
    for (const one of document.querySelectorAll("#home .pickers select")) {
      const about = one.parentElement.querySelector(".about");
      if (about) about.textContent = one.selectedOptions[0]?.dataset.about || "";
    }
  }
  function remember(stream) {
    const url = new URL(location.href);
    if (stream) url.searchParams.set("stream", stream);
    else url.searchParams.delete("stream");
    history.replaceState(null, "", url);
  }
  function setBusy(busy) {
    document.querySelectorAll("#home button, #home input").forEach((one) => (one.disabled = busy));
    if (busy) root.dataset.busy = "1";
    else delete root.dataset.busy;
  }
  function options() {
    const value = (id) => ($(id) ? $(id).value : "");
    return { model: value("model"), preset: value("preset"), pace: value("pace"), kept: value("kept") };
  }
  function open(source) {
    say("");
    setBusy(true);
    act("act", { do: "open", source, ...options() });
  }

  // The live view and seeking --------------------------------------------------------------------------------------------

  const NO_PICTURE = "No picture is kept";
  let moment = null; // what is looked at instead of now: { stream, seconds, key, label, picture }

  function playLive() {
    const image = $("live");
    if (!image) return;
    const own = camera !== null && camera.stream === shown.stream; // one's own webcam needs no server to be seen
    const what = shown.poster ? `frames/${shown.poster}.jpg` : "live.mjpg"; // a memory that is only asked is not live
    const wanted = shown.stream && !own && !document.hidden ? `/v1/streams/${shown.stream}/${what}` : "";
    $("mine").srcObject = own ? camera.media : null;
    if (own) $("mine").play().catch(() => {}); // refused where nobody looks; it is tried again at the next change
    if (image.dataset.plays !== wanted) {
      image.dataset.plays = wanted;
      image.onerror = () => {
        if (!shown.poster) return;
        image.hidden = true;
        if (shown.over) $("waiting").textContent = NO_PICTURE;
      };
      if (wanted) image.src = wanted;
      else image.removeAttribute("src"); // the connection is given back: browsers have only six for a server
    }
    if (!moment) view("live");
  }
  function view(which) {
    const own = camera !== null && camera.stream === shown.stream;
    $("live").hidden = which !== "live" || own || !$("live").dataset.plays;
    $("mine").hidden = which !== "live" || !own;
    for (const id of ["replay", "still"]) $(id).hidden = id !== which;
    $("back").hidden = which === "live";
    $("moment").hidden = which !== "still";
    if (which === "live") delete root.dataset.seeking;
    else root.dataset.seeking = "1";
  }
  function live() {
    moment = null;
    if (!$("live")) return;
    $("replay").pause();
    mark();
    playLive();
  }
  function seek(seconds, key, label, picture = "") {
    moment = { stream: shown.stream, seconds, key, label, picture };
    playLive();
    mark();
    if (shown.file) replay(seconds);
    else still();
    if (scrolls()) $("stage-box").scrollIntoView({ block: "nearest" });
  }
  function replay(seconds) {
    const video = $("replay");
    const source = `/v1/streams/${shown.stream}/source`;
    view("replay");
    video.onerror = () => moment && still();
    const jump = () => {
      if (Number.isFinite(video.duration) && video.videoWidth) video.currentTime = Math.min(seconds, video.duration);
      else still();
    };
    if (video.dataset.plays !== source) {
      video.dataset.plays = source;
      video.src = source;
    }
    if (video.error) still();
    else if (video.readyState >= 1) jump();
    else video.onloadedmetadata = jump;
    video.pause();
  }
  async function still() { // the very picture that was clicked, else the nearest that is kept; each says its own time
    const wanted = moment, image = $("still");
    view("still");
    tell(wanted.seconds);
    const nearest = `/v1/streams/${wanted.stream}/frames/${wanted.seconds.toFixed(3)}.jpg`;
    const found = (wanted.picture && (await picture(wanted.picture))) || (await picture(nearest));
    if (moment !== wanted) return;
    URL.revokeObjectURL(image.src);
    if (!found) {
      image.removeAttribute("src");
      $("moment").textContent = `No picture of ${clock(wanted.seconds)} is kept`;
      return;
    }
    image.src = URL.createObjectURL(found.blob);
    tell(found.seconds ?? wanted.seconds);
  }
  async function picture(address) { // null where there is none
    const reply = await fetch(address).catch(() => null);
    if (!reply?.ok) return null;
    const said = reply.headers.get("X-Stream-Seconds") ?? reply.headers.get("X-Frame-Seconds");
    return { blob: await reply.blob(), seconds: said === null ? null : Number(said) };
  }
  function tell(seconds) {
    $("still").alt = `The picture of ${clock(seconds)}`;
    $("moment").textContent = [clock(seconds), moment.label].filter(Boolean).join("  ");
  }
  const SEEKS = ".evidence button, .event button";
  function mark() {
    document.querySelectorAll(SEEKS).forEach((one) => { // what the server sends does not know of it
      const pressed = moment !== null && one.dataset.key === moment.key;
      one.setAttribute("aria-pressed", String(pressed));
    });
    moveNeedle();
  }
  function moveNeedle() {
    const needle = $("needle"), map = $("map-svg");
    if (!needle || !map) return;
    needle.setAttribute("visibility", moment ? "visible" : "hidden");
    if (moment) needle.setAttribute("x", (moment.seconds / Number(map.dataset.end)) * 1000 - 1);
  }
  function clock(seconds) {
    const whole = Math.floor(seconds), two = (n) => String(n).padStart(2, "0");
    const rest = `${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
    return whole >= 3600 ? `${Math.floor(whole / 3600)}:${rest}` : rest;
  }
  function seekButton(button) {
    button.focus();
    seek(Number(button.dataset.seconds), button.dataset.key, button.dataset.level, button.querySelector("img").src);
  }
  let follows = false; // on a phone the page itself scrolls: it follows a new answer until somebody scrolls up
  const scrolls = () => getComputedStyle($("log-box")).overflowY === "visible";
  let opens = false; // a conversation that was just opened is shown from its newest question
  function toNewest() {
    opens = false;
    const newest = [...document.querySelectorAll(".turn")].at(-1);
    if (newest && scrolls()) setTimeout(() => newest.scrollIntoView({ block: "start" }), 50); // it is laid out by then
  }
  function follow() {
    mark();
    if (follows && scrolls()) window.scrollTo(0, root.scrollHeight);
    if (opens && document.querySelector(".turn")) toNewest();
  }
  window.addEventListener("wheel", () => (follows = false), { passive: true });
  window.addEventListener("touchmove", () => (follows = false), { passive: true });
  function stepEvidence(step) {
    const focused = document.activeElement?.closest(".evidence button");
    const from = focused || document.querySelector('.evidence button[aria-pressed="true"]');
    if (!from) return false;
    const all = [...from.closest(".evidence").querySelectorAll("button")];
    const next = all[all.indexOf(from) + step];
    if (!next) return true;
    if (moment) seekButton(next);
    else next.focus();
    return true;
  }

  // Webcam -----------------------------------------------------------------------------------------------------------

  let camera = null; // { stream, media, socket, timer, shown }
  const CAMERA_SENTENCES = {
    NotAllowedError: "The browser was not allowed to use the camera; allow it beside the address, then try again.",
    NotFoundError: "This browser finds no camera; plug one in, then try again.",
    NotReadableError: "The camera is in use by another program; close that, then try again.",
  };
  async function webcam() {
    say("");
    if (!window.isSecureContext || !navigator.mediaDevices)
      return say("Browsers give the camera only to pages over HTTPS or on localhost; start vstream serve with --tls-cert and --tls-key, or open this page as localhost.");
    setBusy(true);
    let media = null;
    try {
      media = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, height: { ideal: 720 } } });
      const { model, preset, kept } = options();
      const stream = await post("/v1/streams", { source: "push", title: "Webcam", model, preset, keep: Boolean(kept) });
      stopCamera();
      await push(stream.id, media);
      act("act", { do: "begin", stream: stream.id });
    } catch (error) {
      media?.getTracks().forEach((track) => track.stop());
      say(CAMERA_SENTENCES[error.name] || error.message);
      setBusy(false);
    }
  }
  async function push(stream, media) {
    const video = document.createElement("video");
    const canvas = document.createElement("canvas");
    Object.assign(video, { srcObject: media, muted: true, playsInline: true });
    await video.play();
    camera = { stream, media, socket: dial(stream), timer: 0 };
    camera.timer = setInterval(() => {
      if (!camera || camera.socket.readyState !== WebSocket.OPEN || camera.socket.bufferedAmount > 1 << 20) return;
      const scale = Math.min(1, 960 / Math.max(video.videoWidth, video.videoHeight, 1));
      canvas.width = Math.round(video.videoWidth * scale);
      canvas.height = Math.round(video.videoHeight * scale);
      if (!canvas.width) return;
      canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => blob && camera?.socket.readyState === 1 && camera.socket.send(blob), "image/jpeg", 0.85);
    }, 500);
  }
  function dial(stream) {
    const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/v1/streams/${stream}/push`);
    socket.onclose = () => setTimeout(() => {
      if (camera?.stream === stream) camera.socket = dial(stream);
    }, 2000);
    return socket;
  }
  function stopCamera() {
    if (!camera) return;
    const { media, socket, timer } = camera;
    camera = null;
    clearInterval(timer);
    media.getTracks().forEach((track) => track.stop());
    socket.close();
  }
  async function post(path, body) {
    const clean = Object.fromEntries(Object.entries(body).filter(([, value]) => value !== ""));
    const reply = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(clean) });
    const said = await reply.json().catch(() => ({}));
    if (!reply.ok) throw new Error(sentence(said, reply.status));
    return said;
  }
  function sentence(said, status) {
    return said?.error?.message || (typeof said?.detail === "string" && said.detail) || `The server refused (${status}).`;
  }

  // Uploads -----------------------------------------------------------------------------------------------------------

  function upload(file) {
    const request = new XMLHttpRequest(), bar = $("upload-progress");
    const over = (text) => { bar.hidden = true; say(text); setBusy(false); };
    setBusy(true);
    say("");
    bar.hidden = false;
    bar.firstElementChild.style.width = "0";
    request.upload.onprogress = (event) => {
      const share = event.lengthComputable ? event.loaded / event.total : 0;
      bar.firstElementChild.style.width = `${100 * share}%`;
      bar.setAttribute("aria-valuenow", String(Math.round(100 * share)));
    };
    request.onerror = () => over("The upload broke off; try again.");
    request.onload = () => {
      let said = {};
      try { said = JSON.parse(request.responseText); } catch { /* not JSON: the status says it */ }
      if (request.status >= 300) return over(sentence(said, request.status));
      over("");
      open(said.source);
    };
    request.open("POST", `/v1/uploads?name=${encodeURIComponent(file.name)}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(file);
  }
  function say(text, trouble = true) {
    const place = $("notice");
    if (!place) return;
    place.replaceChildren();
    if (!text) return;
    const line = document.createElement("p");
    line.className = trouble ? "trouble" : "";
    line.textContent = text;
    place.append(line);
  }

  // Dialogs -----------------------------------------------------------------------------------------------------------

  function dialog(id, then) {
    const box = $(id);
    box.returnValue = "";
    box.onclose = () => box.returnValue && then(box.returnValue);
    box.showModal();
  }
  const DOES = {
    open: (one) => open(one.dataset.source),
    webcam: () => webcam(),
    upload: () => $("upload").click(),
    live: () => live(),
    seek: (one) => seekButton(one),
    theme: () => theme(),
    dismiss: (one) => one.closest("dialog").close(""),
    ask: (one) => ask(one.dataset.question),
    rename: (one) => {
      $("new-title").value = one.dataset.title;
      dialog("rename-dialog", () => act("act", { do: "rename", memory: one.dataset.memory, stream: one.dataset.stream, title: $("new-title").value }));
      $("new-title").select();
    },
    delete: (one) => {
      $("delete-what").textContent = one.dataset.title;
      dialog("delete-dialog", () => act("act", { do: "delete", memory: one.dataset.memory }));
    },
    close: (one) => {
      const close = (how) => act("act", { do: how, stream: one.dataset.stream });
      if (one.dataset.kept) close("close");
      else dialog("close-dialog", close);
    },
  };

  // Asking, keys, theme ---------------------------------------------------------------------------------------------------

  const waiting = new Map(); // questions that the server has not taken yet, by the note that goes with each
  let notes = 0;
  function ask(question) { // stays in the box until the server has taken it
    const text = question.trim(), box = $("question");
    opens = false;
    if (!text || [...waiting.values()].includes(text)) return;
    if ("gone" in root.dataset) return void (box.value ||= text);
    const note = `q${++notes}`;
    waiting.set(note, text);
    act("ask", { stream: shown.stream, question: text, note });
    check(1).then((there) => there || giveBack());
    $("log-box").scrollTop = 0; // its bottom: it is laid out from there
    follows = true;
  }
  function giveBack() { // what was asked of a server that is gone can be asked again
    for (const text of waiting.values()) $("question").value ||= text;
    waiting.clear();
  }
  function told() {
    const notice = document.querySelector("#told .notice"), box = $("question");
    const said = (name) => (notice?.dataset[name] || "").split(" ");
    for (const note of said("taken")) {
      const text = waiting.get(note);
      if (text && box.value.trimStart().startsWith(text)) box.value = box.value.trimStart().slice(text.length).trimStart();
      waiting.delete(note);
    }
    for (const note of said("refused")) {
      if (waiting.has(note)) box.value ||= waiting.get(note);
      waiting.delete(note);
    }
  }
  let telling = ""; // a standing question that was sent; it stays in its box until it is in the list
  function tellMe(text) {
    telling = text.trim().replace(/\s+/g, " ");
    if (telling && !("gone" in root.dataset)) act("act", { do: "tell", stream: shown.stream, text: telling });
  }
  function taken() {
    const box = $("tell-text"), there = [...document.querySelectorAll("#alerts .alert")];
    if (!telling || !there.some((one) => one.dataset.text === telling)) return;
    if (box.value.trim().replace(/\s+/g, " ") === telling) box.value = "";
    telling = "";
  }
  let hushed = null;
  function hush() { // a sentence about what went wrong goes when one types on
    const trouble = document.querySelector("#told .trouble");
    if (!trouble || trouble === hushed) return;
    hushed = trouble;
    act("act", { do: "heard" });
  }
  const DRAFT = "vstream-draft";
  let draft = sessionStorage.getItem(DRAFT); // what was typed before this page came back by itself
  sessionStorage.removeItem(DRAFT);
  function restoreDraft() {
    if (draft) $("question").value ||= draft;
    draft = null;
  }
  function theme() {
    const dark = getComputedStyle(root).colorScheme === "dark" ||
      (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    setTheme(dark ? "light" : "dark");
    localStorage.setItem("vstream-theme", root.dataset.theme);
  }
  function setTheme(name) {
    if (name) root.dataset.theme = name;
  }
  setTheme(localStorage.getItem("vstream-theme"));

  document.addEventListener("click", (event) => {
    const one = within(event, "[data-do]");
    document.querySelectorAll("details.menu[open]").forEach((menu) => {
      if (!menu.contains(event.target) || one || within(event, "a")) menu.open = false;
    });
    if (one) {
      const does = DOES[one.dataset.do];
      if (does) does(one);
      else act("act", { ...one.dataset });
      return;
    }
    const map = within(event, "#map-svg");
    if (map) {
      const box = map.getBoundingClientRect();
      seek(((event.clientX - box.left) / box.width) * Number(map.dataset.end), "map", "");
    }
  });
  document.addEventListener("submit", (event) => {
    if (event.target.id === "open-form") {
      event.preventDefault();
      if ($("source").value.trim()) open($("source").value.trim());
      else {
        say(`Type what shall be watched: ${$("source").placeholder}.`);
        $("source").focus();
      }
    } else if (event.target.id === "tell-form") {
      event.preventDefault();
      tellMe($("tell-text").value);
    } else if (event.target.id === "ask-form") {
      event.preventDefault();
      ask($("question").value);
    }
  });
  document.addEventListener("input", (event) => ["question", "tell-text"].includes(event.target.id) && hush());
  document.addEventListener("change", (event) => {
    if (within(event, ".pickers")) explain();
    if (event.target.id === "upload" && event.target.files.length) {
      upload(event.target.files[0]);
      event.target.value = "";
    }
  });
  document.addEventListener("keydown", (event) => {
    const typing = within(event, "input, textarea, select, dialog");
    if (event.target.id === "question" && event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("ask-form").requestSubmit();
    } else if ((event.key === "/" && !typing) || (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey))) {
      event.preventDefault();
      (root.dataset.view === "watch" ? $("question") : $("source")).focus();
    } else if (event.key === "Escape" && !within(event, "dialog")) {
      const menu = document.querySelector("details.menu[open]");
      if (menu) menu.open = false;
      else live();
    } else if (!typing && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
      if (!within(event, "video") && stepEvidence(event.key === "ArrowRight" ? 1 : -1)) event.preventDefault();
    }
  });
  document.addEventListener("visibilitychange", playLive);
  window.addEventListener("pagehide", stopCamera);

  // The server, gone and back --------------------------------------------------------------------------------------------

  let missed = 0;
  async function check(most) { // whether it is there; after so many misses the page says that it is not
    try {
      await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(4000) });
      if ("gone" in root.dataset) {
        sessionStorage.setItem(DRAFT, $("question").value);
        location.reload();
      }
      missed = 0;
      return true;
    } catch {
      if (++missed >= most) root.dataset.gone = "1";
      return !("gone" in root.dataset);
    }
  }
  setInterval(() => check(2).then((there) => there || giveBack()), 2000);

  window.vstreamPage = { connect, sync, mark, follow, told, taken };
})();
