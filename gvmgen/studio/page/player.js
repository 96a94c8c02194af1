// One picture, many sounds: the muted video leads, the chosen take's sound follows it.

import { byId, clock } from "./asking.js"

const APART_S = 0.12 // more than this is heard as out of step

const picture = byId("picture"), place = byId("place"), play = byId("play")
const sounds = new Map() // by address, kept so that changing the take needs no wait
let sound = null // the take that is heard; null: the video's own sound
let length = 0
let changed = () => {}

/** Show another video. */
export function show(address, duration_s) {
  for (const each of sounds.values()) { each.pause(); each.removeAttribute("src") }
  sounds.clear()
  sound = null
  length = duration_s
  place.max = duration_s
  picture.muted = false
  picture.src = address
}

export function leave() {
  show("", 0)
  picture.removeAttribute("src")
  picture.load()
}

/** Make a take ready, so that it plays at once when it is chosen. */
export function prepare(address) {
  if (!sounds.has(address)) sounds.set(address, Object.assign(new Audio(address), { preload: "auto" }))
  return sounds.get(address)
}

/** Hear a take from the present moment on; null for the video's own sound. */
export function choose(address) {
  sound?.pause()
  sound = address === null ? null : prepare(address)
  picture.muted = sound !== null
  byId("heard").textContent = ""
  if (!picture.paused) follow(true)
  changed()
}

export const chosen = () => [...sounds].find(([, each]) => each === sound)?.[0] ?? null
export const now = () => picture.currentTime
export const onChange = listener => { changed = listener }

export function start(at_s) {
  if (at_s !== undefined) picture.currentTime = at_s
  picture.play().catch(() => {}) // a pause came in between
}

export function toggle() {
  if (!picture.paused) return picture.pause()
  if (picture.ended) picture.currentTime = 0
  start()
}

export function jump(by_s) {
  picture.currentTime = Math.min(length, Math.max(0, picture.currentTime + by_s))
}

/** Bring the sound to where the picture is. */
function follow(now) {
  if (!sound) return
  const apart = Math.abs(sound.currentTime - picture.currentTime)
  const isOver = sound.duration && picture.currentTime >= sound.duration
  if (isOver) return sound.pause()
  if (now || apart > APART_S) sound.currentTime = picture.currentTime
  if (picture.paused) sound.pause()
  else if (sound.paused) sound.play().catch(() => {})
}

function draw() {
  place.value = picture.currentTime
  place.setAttribute("aria-valuetext", clock(picture.currentTime))
  byId("needle").style.left = `${length ? (100 * picture.currentTime) / length : 0}%`
  byId("time").textContent = `${clock(picture.currentTime)} / ${clock(length)}`
  play.textContent = picture.paused ? "▶" : "❚❚"
  play.setAttribute("aria-label", picture.paused ? "Play" : "Pause")
}

for (const name of ["play", "pause", "seeked", "loadedmetadata", "ended"])
  picture.addEventListener(name, () => { follow(true); draw(); changed() })
picture.addEventListener("waiting", () => sound?.pause())
picture.addEventListener("playing", () => follow(true))
picture.addEventListener("timeupdate", () => { follow(false); draw() })
picture.addEventListener("click", toggle)
play.addEventListener("click", toggle)
place.addEventListener("input", () => { picture.currentTime = Number(place.value) })
