// The music of one video: what waits, what is being composed, what is done.

import { ask, byId, clock, make } from "./asking.js"
import * as player from "./player.js"

const DOING = { watching: "Watching the video", composing: "Composing", decoding: "Making sound",
  ranking: "Ranking the takes", finishing: "Mastering and making films" }
const SCORES = { cmr: "fits the picture", cut_onsets: "notes on cuts", onset_motion: "notes with motion",
  energy_motion: "loudness with motion" }
const ORIGINAL = { drop: "", keep: "over the film's sound", duck: "making room for speech" }

const cards = new Map() // by number
let takes = [] // addresses of all takes, in the order that they stand on the page
let key = null

/** Forget what another video had. */
export function open(video) {
  key = video
  cards.clear()
  takes = []
  byId("orders").replaceChildren()
}

/** Bring the cards up to date; what did not change is left alone, and keeps the focus. */
export function update(orders, engine, report) {
  for (const [number, card] of cards) if (!orders.some(order => order.number === number)) {
    card.root.remove()
    cards.delete(number)
  }
  for (const order of [...orders].reverse()) {
    const old = cards.get(order.number)
    if (old?.state === order.state) old.refresh?.(order, engine)
    else {
      const card = build(order, report)
      card.refresh?.(order, engine)
      old ? old.root.replaceWith(card.root) : byId("orders").prepend(card.root)
      cards.set(order.number, { ...card, state: order.state })
    }
  }
  const hadTakes = takes.length > 0
  takes = [...byId("orders").querySelectorAll(".take")].map(take => take.dataset.listen)
  if (takes.length && !hadTakes) player.choose(takes[0])
  mark()
}

/** Hear the take of a number, 1 the topmost; 0 the video's own sound. */
export function choose(number) {
  if (number === 0) player.choose(null)
  else if (takes[number - 1]) player.choose(takes[number - 1])
}

function build(order, report) {
  const head = make("div", { className: "order-head" }, make("h2", { textContent: title(order) }),
    make("p", { textContent: wishes(order.wanted) }))
  const root = make("article", { className: "order" }, head)
  root.dataset.state = order.state
  if (order.state === "failed") root.append(make("p", { className: "bad", textContent: order.error }))
  if (order.state === "done") root.append(...order.takes.map(take => takeRow(order, take)))
  if (order.state === "queued" || order.state === "running") return { root, refresh: working(order, root, report) }
  head.append(button("Delete", "quiet", () => remove(order, report, "Delete this music for good?")))
  return { root }
}

function title(order) {
  const many = order.wanted.takes === 1 ? "One take" : `${order.wanted.takes} takes`
  return { queued: `${many}, waiting`, running: `${many}, at work`, failed: `${many}, failed`,
    done: order.takes.some(take => Object.keys(take.scores).length) ? `${many}, the best first` : many }[order.state]
}

function wishes(wanted) {
  const part = wanted.from_s || wanted.to_s !== null
    ? `${clock(wanted.from_s, 1)} – ${wanted.to_s === null ? "end" : clock(wanted.to_s, 1)}` : ""
  const loudness = wanted.loudness === "off" ? "loudness as composed" : `${wanted.loudness} LUFS`
  const ending = wanted.ending === "cut" ? "ends with the last frame" : ""
  const plain = /^[a-z]/.test(wanted.loudness) ? wanted.loudness : loudness
  return [part, ending, wanted.loudness === "-14" ? "" : plain, ORIGINAL[wanted.original]].filter(Boolean).join(" · ")
}

/** Progress and a way out; returns what brings it up to date. */
function working(order, root, report) {
  const line = make("p"), bar = make("progress", { max: 1, ariaLabel: "Progress" })
  root.append(make("div", { className: "working" }, line, bar, button("Cancel", "", () => remove(order, report))))
  return (order, engine) => {
    const progress = order.progress
    line.textContent = progress ? doing(progress) : waiting(order, engine)
    if (progress?.stage) bar.value = (progress.step - 1 + progress.share) / progress.steps
    else bar.removeAttribute("value")
  }
}

function doing(progress) {
  if (!progress.stage) return "Starting"
  const what = `${DOING[progress.stage] ?? progress.stage} (step ${progress.step} of ${progress.steps})`
  if (progress.left_s === null) return what
  return `${what}, about ${lasting(progress.left_s)} left${progress.left_is_all ? "" : " in this step"}`
}

function lasting(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`
  return seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`
}

function waiting(order, engine) {
  if (order.ahead) return `In the queue, ${order.ahead} ahead of you`
  return engine.state === "loading" ? "First in the queue; the model is loading" : "First in the queue"
}

function takeRow(order, take) {
  const folder = `/files/${key}/${order.number}`
  const listen = `${folder}/${take.listen}`
  player.prepare(listen)
  const row = make("div", { className: "take" })
  row.dataset.listen = listen
  const hear = button("", "", () => {
    if (player.chosen() === listen) return player.toggle()
    player.choose(listen)
    player.start()
  })
  const wave = waveform(take.peaks)
  wave.addEventListener("click", event => {
    player.choose(listen)
    player.start(take.start_s + (event.offsetX / wave.clientWidth) * take.duration_s)
  })
  const files = make("span", { className: "files" }, download("sound", `${folder}/${take.sound}`, take),
    download("film", `${folder}/${take.film}`, take))
  row.append(hear, wave, files, make("small", { textContent: scores(take) }))
  return row
}

function download(what, address, take) {
  const suffix = address.slice(address.lastIndexOf("."))
  const stem = byId("title").textContent.replace(/\.[^.]*$/, "")
  return make("a", { textContent: suffix.slice(1), href: address, download: `${stem} seed ${take.seed}${suffix}`,
    ariaLabel: `Download the ${what} of seed ${take.seed}` })
}

function scores(take) {
  const known = Object.entries(take.scores).filter(([, value]) => value !== null)
  return [`seed ${take.seed}`, ...known.map(([name, value]) => `${SCORES[name]} ${value.toFixed(2)}`)].join(" · ")
}

function waveform(peaks) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg")
  svg.setAttribute("viewBox", `0 -1 ${peaks.length} 2`)
  svg.setAttribute("preserveAspectRatio", "none")
  svg.setAttribute("aria-hidden", "true")
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path")
  path.setAttribute("d", peaks.map((peak, i) => `M${i + 0.5} ${-Math.max(peak, 0.02)}V${Math.max(peak, 0.02)}`).join(""))
  path.setAttribute("stroke", "currentColor")
  path.setAttribute("stroke-width", "0.7")
  svg.append(path)
  return svg
}

/** Show which take is heard. */
export function mark() {
  const heard = player.chosen(), isPlaying = !byId("picture").paused
  byId("orders").querySelectorAll(".take").forEach((take, index) => {
    const isHeard = take.dataset.listen === heard
    take.classList.toggle("heard", isHeard)
    const hear = take.querySelector("button")
    hear.textContent = `${isHeard && isPlaying ? "❚❚" : "▶"} Take ${index + 1}`
    hear.setAttribute("aria-pressed", isHeard)
    if (isHeard) byId("heard").textContent = `Take ${index + 1}`
  })
  if (!heard) byId("heard").textContent = takes.length ? "its own sound" : ""
}

function button(textContent, className, onclick) {
  return make("button", { type: "button", textContent, className, onclick })
}

async function remove(order, report, question) {
  if (question && !confirm(question)) return
  await report(ask("DELETE", `/api/videos/${key}/orders/${order.number}`))
}
