// How the page speaks to the studio, and small helpers to build the page.

/** JSON of an answer; an error carries the studio's one line. */
export async function ask(method, path, body) {
  let answer
  try {
    answer = await fetch(path, { method, body: body === undefined ? undefined : JSON.stringify(body) })
  } catch {
    throw new Error("The studio does not answer. Is gvm-studio still running?")
  }
  if (answer.status === 204) return null
  const found = await answer.json().catch(() => ({}))
  if (!answer.ok) throw new Error(found.error ?? `The studio answered ${answer.status}`)
  return found
}

/** Send a file; `told` hears the share that went out. Returns a promise, and how to stop. */
export function send(file, told) {
  const request = new XMLHttpRequest()
  const done = new Promise((resolve, reject) => {
    request.upload.onprogress = event => told(event.loaded / event.total)
    request.onload = () => {
      const found = JSON.parse(request.responseText || "{}")
      request.status < 300 ? resolve(found) : reject(new Error(found.error ?? `The studio answered ${request.status}`))
    }
    request.onerror = () => reject(new Error(`${file.name}: the connection broke while it was sent; try again`))
    request.onabort = () => resolve(null)
  })
  request.responseType = "text"
  request.open("POST", `/api/videos?name=${encodeURIComponent(file.name)}`)
  request.send(file)
  return { done, stop: () => request.abort() }
}

/** An element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties)
  element.append(...children)
  return element
}

export const byId = id => document.getElementById(id)

/** 1:05 of 65; with tenths where asked and there are some. */
export function clock(seconds, digits = 0) {
  const rounded = Math.max(0, Number(seconds.toFixed(digits)))
  const [whole, tenths] = (rounded % 60).toFixed(digits).split(".")
  return `${Math.floor(rounded / 60)}:${whole.padStart(2, "0")}${Number(tenths) ? `.${tenths}` : ""}`
}

/** Seconds of 65, 1:05 or 0:01:05; null where it is none. */
export function seconds(text) {
  const parts = text.trim().split(":").map(Number)
  if (!text.trim() || parts.length > 3 || parts.some(part => !(part >= 0))) return null
  return parts.reduce((sum, part) => sum * 60 + part, 0)
}
