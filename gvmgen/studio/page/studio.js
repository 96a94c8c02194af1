// The page: which video is open stands in the address, what happens to it is asked of the studio again and again.

import { ask, byId, clock, make, seconds, send } from "./asking.js"
import * as orders from "./orders.js"
import * as player from "./player.js"

const SOON_MS = 500, LATER_MS = 3000

let studio = null // what the studio said last
let video = null // the open one
let timer = 0

function say(text) {
  byId("error").textContent = text
  byId("error").hidden = !text
  if (text) byId("error").scrollIntoView({ block: "nearest" })
}

/** Wait for an answer; its error goes on the page. Then look again. */
async function report(answer) {
  say("")
  try { return await answer } catch (error) { say(error.message) } finally { look() }
}

const wantedKey = () => decodeURIComponent(location.hash.slice(1))

/** Ask how things are, show it, and come again. */
async function look() {
  clearTimeout(timer)
  let soon = false
  try {
    studio = await ask("GET", "/api/studio")
    const key = wantedKey()
    if (key && studio.videos.some(each => each.key === key)) soon = showVideo(await ask("GET", `/api/videos/${key}`))
    else soon = showHome()
    showEngine()
    if (byId("error").dataset.gone) { say(""); delete byId("error").dataset.gone }
  } catch (error) {
    say(error.message)
    byId("error").dataset.gone = "yes"
  }
  clearTimeout(timer)
  timer = setTimeout(look, soon || studio?.engine.state === "loading" ? SOON_MS : LATER_MS)
}

/** pocket/model (step 703) of its whole path. */
const modelName = path => path.split("/").slice(-2).join("/")

function showEngine() {
  const engine = studio.engine
  const words = { loading: "The model is loading …", broken: `The model cannot be loaded: ${engine.error}` }
  byId("engine").textContent = words[engine.state] ?? [modelName(engine.model), ...engine.warnings].join(" · ")
  byId("engine").classList.toggle("bad", engine.state === "broken")
}

// Home: a place to drop a video, and the earlier ones

function showHome() {
  if (video) player.leave()
  video = null
  byId("home").hidden = false
  byId("work").hidden = true
  document.title = "gvm-studio"
  byId("limits").textContent = `(up to ${studio.limits.upload_mb} MB, ${studio.limits.length_min} min)`
  byId("earlier").hidden = !studio.videos.length
  const text = JSON.stringify(studio.videos)
  if (byId("videos").dataset.shown !== text) {
    byId("videos").replaceChildren(...studio.videos.map(videoCard))
    byId("videos").dataset.shown = text
  }
  return studio.videos.some(each => each.is_busy || !each.picture)
}

function videoCard(each) {
  const picture = each.picture ? make("img", { src: `/files/${each.key}/${each.picture}`, alt: "" })
    : make("span", { className: "blank" })
  const takes = each.num_takes === 1 ? "1 take" : `${each.num_takes} takes`
  const about = [clock(each.duration_s), each.is_busy ? "at work" : takes].join(" · ")
  return make("li", {}, make("a", { href: `#${each.key}` }, picture, make("b", { textContent: each.name }),
    make("small", { textContent: about })))
}

async function upload(file) {
  if (!file) return
  if (file.size > studio.limits.upload_mb * 1e6)
    return say(`${file.name}: is bigger than ${studio.limits.upload_mb} MB. Make it smaller, or start gvm-studio with --max-upload`)
  const { done, stop } = send(file, share => { byId("sending-bar").value = share })
  byId("sending-name").textContent = `Sending ${file.name}`
  byId("sending").hidden = false
  byId("sending-stop").onclick = stop
  const sent = await report(done)
  byId("sending").hidden = true
  byId("file").value = ""
  if (sent) location.hash = sent.key
}

byId("file").addEventListener("change", () => upload(byId("file").files[0]))
for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, event => {
  event.preventDefault() // or the browser leaves the page to open the file
  byId("drop").classList.toggle("over", name === "dragover")
  if (name === "drop" && event.dataTransfer.files.length) {
    location.hash = ""
    upload(event.dataTransfer.files[0])
  }
})

// One video

function showVideo(found) {
  if (video?.key !== found.key) openVideo(found)
  if (found.play && found.play !== video.play) player.show(`/files/${found.key}/${found.play}`, found.duration_s)
  showStrip(found)
  video = found
  orders.update(found.orders, studio.engine, report)
  const isLooking = found.cuts === null && !found.trouble
  return isLooking || found.orders.some(order => order.state === "queued" || order.state === "running")
}

function openVideo(found) {
  video = { key: found.key }
  byId("home").hidden = true
  byId("work").hidden = false
  byId("title").textContent = found.name
  byId("picture").style.aspectRatio = `auto ${found.width} / ${found.height}` // nothing jumps when it arrives
  document.title = `${found.name} – gvm-studio`
  for (const id of ["strip", "cuts"]) delete byId(id).dataset.shown
  orders.open(found.key)
  byId("wanted").reset()
  showChoices(found)
  proposeSeed(found)
  showPart()
}

function showChoices(found) {
  const loudness = byId("loudness")
  if (!loudness.options.length) {
    const names = Object.entries(studio.loudness)
    for (const level of [...new Set(names.map(([, value]) => value))])
      loudness.add(new Option(`${level} LUFS: ${names.filter(([, v]) => v === level).map(([n]) => n).join(", ")}`, level))
    loudness.add(new Option("as composed", "off"))
  }
  byId("original").disabled = !found.has_audio
  byId("no-sound").hidden = found.has_audio
  byId("duck").querySelector("input").disabled = Boolean(studio.missing.duck)
  byId("missing").textContent = Object.values(studio.missing).join("; ")
}

/** The next seed that this video has not heard yet. */
function proposeSeed(found) {
  byId("seed").value = Math.max(0, ...found.orders.map(order => order.wanted.seed + order.wanted.takes))
}

function showStrip(found) {
  const strip = byId("strip"), cuts = byId("cuts")
  if (strip.dataset.shown !== String(found.frames.length)) {
    strip.replaceChildren(...found.frames.map(name => make("img", { src: `/files/${found.key}/${name}`, alt: "" })))
    strip.dataset.shown = String(found.frames.length)
  }
  if (found.cuts && !cuts.dataset.shown) {
    cuts.replaceChildren(...found.cuts.map(cut => {
      const tick = make("i")
      tick.style.left = `${(100 * cut) / found.duration_s}%`
      return tick
    }))
    cuts.dataset.shown = "yes"
  }
  byId("seen").textContent = found.trouble || seen(found)
  byId("seen").classList.toggle("bad", Boolean(found.trouble))
}

function seen(found) {
  const size = `${clock(found.duration_s, 1)}, ${found.width} × ${found.height}`
  if (found.cuts === null) return `${size}; looking for cuts …`
  return `${size}, ${found.cuts.length === 1 ? "1 cut" : `${found.cuts.length || "no"} cuts`}`
}

/** Darken what is left out of the part from – to. */
function showPart() {
  const length = video?.duration_s ?? 0
  const from = seconds(byId("from").value) ?? 0, to = seconds(byId("to").value) ?? length
  byId("outside-before").style.width = `${length ? Math.min(100, (100 * from) / length) : 0}%`
  byId("outside-after").style.width = `${length ? Math.max(0, 100 - (100 * to) / length) : 0}%`
}

for (const id of ["from", "to"]) {
  byId(id).addEventListener("input", showPart)
  byId(`${id}-here`).addEventListener("click", () => {
    byId(id).value = clock(player.now(), 1)
    showPart()
  })
}

byId("wanted").addEventListener("submit", async event => {
  event.preventDefault()
  const form = new FormData(event.target)
  const wanted = Object.fromEntries(form)
  const sent = await report(ask("POST", `/api/videos/${video.key}/orders`,
    { ...wanted, takes: Number(wanted.takes), seed: Number(wanted.seed) }))
  if (sent) byId("seed").value = sent.wanted.seed + sent.wanted.takes
})

byId("delete-video").addEventListener("click", async () => {
  if (!confirm(`Delete ${video.name} and all music for it, for good?`)) return
  await report(ask("DELETE", `/api/videos/${video.key}`))
  location.hash = ""
})

// Keys, wherever no field has the focus

document.addEventListener("keydown", event => {
  const isTyping = event.target.closest?.("input:not([type=range], [type=radio]), select, textarea")
  if (!video || isTyping || event.ctrlKey || event.metaKey || event.altKey) return
  const isButton = event.target.closest?.("button, a, [type=radio]")
  if (event.key === " " && !isButton) player.toggle()
  else if (event.key === "ArrowLeft" && !isButton) player.jump(-5)
  else if (event.key === "ArrowRight" && !isButton) player.jump(5)
  else if (/^[0-8]$/.test(event.key)) orders.choose(Number(event.key))
  else return
  event.preventDefault()
})

player.onChange(orders.mark)
addEventListener("hashchange", look)
look()
