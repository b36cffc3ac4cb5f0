// The page: a clip, what the model sees of it, questions and their streamed answers. No libraries, no build step.

const $ = (id) => document.getElementById(id);
const state = { url: null, models: [], asking: null, looking: 0 };

start();

async function start() {
  $("file").addEventListener("change", () => take($("file").files[0]));
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    $("drop").addEventListener(kind, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
  }
  $("model").addEventListener("change", look);
  $("heat").addEventListener("change", () => $("frames").classList.toggle("no-heat", !$("heat").checked));
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("ask").requestSubmit(); }
  });
  $("stop").addEventListener("click", () => state.asking?.abort());
  $("key").addEventListener("change", models);
  await models();
}

async function models() {
  try {
    const chosen = $("model").value;
    state.models = (await (await api("models")).json()).data;
    $("model").replaceChildren(...state.models.map((model) => {
      const ratio = model.patch_tokens_per_clip / model.tokens_per_clip;
      return new Option(`${model.id} (${ratio.toFixed(1)}:1)`, model.id, false, model.id === chosen);
    }));
    complain("");
    if (state.url) look();
  } catch (error) {
    if (error.status === 401) {
      document.querySelectorAll(".key").forEach((element) => { element.hidden = false; });
      complain("This server requires a key.");
      $("key").focus();
    } else complain(error.message);
  }
}

async function take(file) {
  if (!file) return;
  complain("");
  $("file-name").textContent = `${file.name}, ${(file.size / 1e6).toFixed(1)} MB`;
  const player = $("player");
  if (player.src) URL.revokeObjectURL(player.src);
  player.hidden = !file.type.startsWith("video/");
  player.src = player.hidden ? "" : URL.createObjectURL(file);
  state.url = await dataUrl(file);
  await look();
}

function dataUrl(file) {
  // a file of a type that the browser does not know has none, and the server looks at the content anyway
  const typed = /^(video|image)\//.test(file.type) ? file : new Blob([file], { type: "video/mp4" });
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(typed);
  });
}

// Shows the sampled frames with their heat map. A later call overrides an earlier one that is still running.
async function look() {
  if (!state.url || !$("model").value) return;
  const number = ++state.looking;
  say("looking at the clip …");
  try {
    const response = await api("video/inspect", { model: $("model").value, video_url: { url: state.url } });
    const seen = await response.json();
    if (number === state.looking) show(seen);
  } catch (error) {
    if (number === state.looking) { $("seen").hidden = true; complain(error.message); }
  } finally {
    if (number === state.looking) say("");
  }
}

function show(seen) {
  complain("");
  $("seen").hidden = false;
  const ratio = seen.tokens_in / seen.tokens_out;
  $("tokens").textContent = `${seen.tokens_in.toLocaleString("en")} patch tokens → ${seen.tokens_out.toLocaleString("en")} visual tokens (${ratio.toFixed(1)}:1)`;
  const heated = seen.frames.some((frame) => frame.heat);
  $("heat").disabled = !heated;
  $("heat-legend").hidden = !heated;
  $("summary-legend").hidden = !seen.frames.some((frame) => frame.summary_levels.length);
  $("frames").replaceChildren(...seen.frames.map((frame) => figure(frame, seen.grid)));
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function figure(frame, grid) {
  const summary = frame.summary_levels.length > 0;
  const time = frame.time.toFixed(2);
  const alt = `Frame ${frame.index} at ${time} seconds${summary ? ", replaced by a summary" : ""}`;
  const picture = element("div", { className: "picture" }, element("img", { src: frame.image, alt }));
  if (frame.heat) picture.append(heatMap(frame.heat, grid));
  const caption = element("figcaption", {}, `${time} s`);
  if (summary) caption.append(element("b", {}, ` summary, level ${frame.summary_levels.join(", ")}`));
  return element("li", { className: summary ? "summary" : "" }, element("figure", {}, picture, caption));
}

const STOPS = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

function heatMap(values, [rows, columns]) {
  const canvas = element("canvas", { width: columns, height: rows });
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  values.forEach((value, at) => {
    const position = (value / 255) * (STOPS.length - 1);
    const low = Math.min(Math.floor(position), STOPS.length - 2);
    const color = STOPS[low].map((channel, index) => channel + (position - low) * (STOPS[low + 1][index] - channel));
    pixels.data.set([...color, 255], at * 4);
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

async function ask() {
  const question = $("question").value.trim();
  if (!question || state.asking) return;
  complain("");
  const content = [{ type: "text", text: question }];
  if (state.url) content.unshift({ type: "video_url", video_url: { url: state.url } });
  const [article, answer, cost] = card(question);
  state.asking = new AbortController();
  busy(true);
  const begun = performance.now();
  let first = 0;
  try {
    const body = { model: $("model").value, messages: [{ role: "user", content }], stream: true, stream_options: { include_usage: true } };
    const response = await api("chat/completions", body, state.asking.signal);
    for await (const event of events(response)) {
      const piece = event.choices?.[0]?.delta?.content;
      if (piece) { first ||= performance.now() - begun; answer.textContent += piece; }
      if (event.usage) cost.textContent = price(event, first, performance.now() - begun);
    }
  } catch (error) {
    if (error.name === "AbortError") cost.textContent = "stopped";
    else { complain(error.message); if (!answer.textContent) article.remove(); }
  } finally {
    state.asking = null;
    busy(false);
  }
}

function card(question) {
  const answer = element("p", { className: "answer" });
  const cost = element("p", { className: "cost" });
  const article = element("article", {}, element("h3", {}, question), answer, cost);
  $("answers").prepend(article);
  return [article, answer, cost];
}

function price(event, first, total) {
  const { tokens_in: before, tokens_out: after, cached_clips: cached } = event.metadata.compression;
  const reused = event.usage.prompt_tokens_details?.cached_tokens || 0;
  const clip = before ? `${before.toLocaleString("en")} → ${after.toLocaleString("en")} tokens${cached ? ", clip remembered" : ""} · ` : "";
  return `${clip}${event.usage.prompt_tokens} prompt${reused ? ` (${reused} reused)` : ""} + ${event.usage.completion_tokens} answer tokens · first text after ${(first / 1000).toFixed(2)} s, all ${(total / 1000).toFixed(2)} s`;
}

// The objects of a stream of server-sent events. Throws if one of them is an error.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data: ") ? line.slice(6) : "";
      if (!data || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function api(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const response = await fetch(`v1/${path}`, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (response.ok) return response;
  const text = await response.json().then((answer) => answer.error.message, () => `the server responded with status ${response.status}`);
  throw Object.assign(new Error(text), { status: response.status });
}

function busy(now) {
  $("send").disabled = now;
  $("stop").hidden = !now;
  say(now ? "answering …" : "");
}

function say(text) { $("status").textContent = text; }

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}
