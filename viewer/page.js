"use strict";
// Everything that comes from a bucket reaches the page as text (textContent) or as a path that Python made of a UUID.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SEEN_KEY = "guardianberry-seen:" + location.pathname;
const NIGHT = "night", DAY = "day";
const STATES = {
  "unfinished": "the camera did not finish this one",
  "under way": "still arriving",
  "picture": "picture only",
};

// ---- What was seen: kept by this browser, for the events of this page only

const seen = new Set(load());

function load() {
  try {
    return JSON.parse(localStorage.getItem(SEEN_KEY)) || [];
  } catch {
    return [];
  }
}

function see(items) {
  for (const item of items) seen.add(item.id);
  const here = items_all.filter((item) => seen.has(item.id)).map((item) => item.id);
  try {
    localStorage.setItem(SEEN_KEY, JSON.stringify(here));
  } catch { /* a browser that keeps nothing: all is new next time */ }
}

// ---- Times: the camera's own where it told them, else this computer's

const pad = (number) => String(number).padStart(2, "0");
const dayFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeZone: "UTC" });

function local(seconds, offset_min) {
  const offset = offset_min ?? -new Date(seconds * 1000).getTimezoneOffset();
  const shifted = new Date((seconds + offset * 60) * 1000);
  return {
    date: shifted.toISOString().slice(0, 10),
    get day() { return dayFormat.format(shifted); },
    hour: shifted.getUTCHours(),
    time: [shifted.getUTCHours(), shifted.getUTCMinutes(), shifted.getUTCSeconds()].map(pad).join(":"),
  };
}

function span(seconds) {
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

// ---- Items: events and gaps, newest first

const letters = (text) => text.toLowerCase().replace(/[^a-z0-9]/g, "");
const cameras = [...new Set(data.events.map((event) => event.camera))].sort();
const camera_of = new Map(cameras.map((camera) => [letters(camera), camera]));

for (const gap of data.gaps) {
  gap.is_gap = true;
  gap.id = `gap ${gap.camera} ${gap.start} ${gap.end}`;
  gap.camera = camera_of.get(letters(gap.camera)) ?? gap.camera;
  if (!cameras.includes(gap.camera)) cameras.push(gap.camera);
}
const items_all = [...data.events, ...data.gaps];
for (const item of items_all) item.at = local(item.end ?? item.start, item.offset_min);
for (const gap of data.gaps) if (gap.end === null) gap.at = local(data.written);
items_all.sort((a, b) => when(b) - when(a));

function when(item) {
  return item.is_gap ? item.end ?? data.written : item.start;
}

// ---- The list

let shown = []; // the events in the order in which they stand

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function facts(event) {
  const told = [];
  if (event.people !== null) told.push(event.people === 1 ? "1 person" : `${event.people} people`);
  if (event.confidence !== null) told.push(event.confidence === 0 ? "no person seen: view lost" : `${event.confidence} %`);
  if (event.duration_s !== null) told.push(span(event.duration_s));
  return told.join(" · ");
}

function card(event, place) {
  const made = element("button", seen.has(event.id) ? "card" : "card new");
  made.type = "button";
  made.dataset.place = place;
  if (event.pictures.length) {
    const picture = element("img");
    picture.loading = "lazy";
    picture.decoding = "async";
    picture.alt = "";
    picture.src = event.pictures[0];
    made.append(picture);
  } else {
    made.append(element("span", "no-picture", ""));
  }
  made.append(element("span", "time", event.at.time), element("span", "camera", event.camera));
  const told = facts(event);
  if (told) made.append(element("span", "facts", told));
  if (STATES[event.state]) made.append(element("span", "state", STATES[event.state]));
  return made;
}

function gap_line(gap) {
  const from = local(gap.start), to = gap.end === null ? null : local(gap.end);
  const begin = to && from.date === to.date ? from.time : `${from.date} ${from.time}`;
  const length = span((gap.end ?? data.written) - gap.start);
  const text = to ? `${begin} to ${to.time} (${length})` : `since ${begin} (${length})`;
  return element("p", "gap", `${gap.camera}: no heartbeat ${text}`);
}

function chosen() {
  const camera = byId("camera").value, hour = byId("hour").value;
  return items_all.filter((item) => {
    if (camera && item.camera !== camera) return false;
    if (!hour || item.is_gap) return true;
    const is_night = item.at.hour >= 22 || item.at.hour < 6;
    return hour === NIGHT ? is_night : hour === DAY ? !is_night : item.at.hour === Number(hour);
  });
}

// Thousands of cards would take a browser seconds, so an hour gets its cards when it comes near the window.
const FILLED_AT_ONCE = 60;
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) fill_hour(entry.target);
}, { rootMargin: "100% 0px" });
let hours = new Map(); // section -> its items, while it has no cards
let section_of = []; // by place

function fill_hour(section) {
  let cards = null;
  for (const [item, place] of hours.get(section) ?? []) {
    if (item.is_gap) {
      section.append(gap_line(item));
      cards = null;
    } else {
      if (!cards) section.append((cards = element("div", "cards")));
      cards.append(card(item, place));
    }
  }
  near.unobserve(section);
  hours.delete(section);
  section.classList.remove("empty");
}

function block(title, items) {
  if (!items.length) return [];
  const made = title ? [element("h2", "block", title)] : [];
  let day = "", hour = -1, section = null;
  for (const item of items) {
    if (item.at.date !== day) {
      day = item.at.date;
      hour = -1;
      made.push(element("h2", "day", item.at.day));
    }
    if (item.at.hour !== hour) {
      hour = item.at.hour;
      section = element("section", "hour empty");
      section.append(element("h3", "", `${pad(hour)}:00`));
      made.push(section);
      hours.set(section, []);
    }
    const place = item.is_gap ? -1 : shown.push(item) - 1;
    hours.get(section).push([item, place]);
    if (place >= 0) section_of[place] = section;
  }
  return made;
}

function render() {
  const items = chosen(), fresh = items.filter((item) => !seen.has(item.id));
  const events = items.filter((item) => !item.is_gap).length, news = fresh.filter((item) => !item.is_gap).length;
  near.disconnect();
  hours = new Map();
  shown = [];
  section_of = [];
  byId("list").replaceChildren(
    ...block(`Not yet seen (${fresh.length})`, fresh),
    ...block(fresh.length ? "Seen" : "", items.filter((item) => seen.has(item.id))),
  );
  let filled = 0;
  for (const [section, its] of [...hours]) {
    if (filled < FILLED_AT_ONCE) fill_hour(section);
    else near.observe(section);
    filled += its.length;
  }
  const written = local(data.written);
  byId("summary").textContent =
    `${events} events, ${news} not yet seen · fetched ${written.date} ${written.time}` +
    (items_all.length ? "" : " · nothing has arrived in the buckets yet");
  byId("all-seen").hidden = !fresh.length;
}

// ---- The player

const player = byId("player"), video = byId("video");
let current = -1;

function open_event(place) {
  const event = shown[place];
  if (!event) return;
  current = place;
  see([event]);
  document.querySelector(`[data-place="${place}"]`)?.classList.remove("new");
  byId("caption").textContent = [
    `${event.at.day}, ${event.at.time}`,
    event.camera,
    facts(event),
    STATES[event.state],
  ].filter(Boolean).join(" · ");
  byId("strip").replaceChildren(...strip(event));
  byId("newer").disabled = place === 0;
  byId("older").disabled = place === shown.length - 1;
  if (!player.open) player.showModal();
  if (event.clip) play(event);
  else show_picture(event.pictures[0]);
}

function strip(event) {
  if (event.pictures.length + Boolean(event.clip) < 2) return [];
  const choices = event.pictures.map((path) => {
    const picture = element("img");
    picture.src = path;
    picture.alt = "Picture of the event";
    picture.addEventListener("click", () => show_picture(path));
    return picture;
  });
  if (event.clip) {
    const again = element("button", "", "\u25b6");
    again.type = "button";
    again.ariaLabel = "Play the clip";
    again.addEventListener("click", () => play(event));
    choices.unshift(again);
  }
  return choices;
}

function play(event) {
  byId("picture").hidden = true;
  video.hidden = false;
  if (event.pictures.length) video.poster = event.pictures[0];
  else video.removeAttribute("poster");
  // The detection is pre_roll_s into the clip, or up to a second later, because clips begin at a key frame. A clip from
  // right after the camera's start has less before it: a short one is shown from its beginning.
  video.onloadedmetadata = () => {
    const moment = data.pre_roll_s;
    video.currentTime = video.duration > moment + 1 ? moment : 0;
    video.play().catch(() => {}); // a browser that wants another click
  };
  video.onerror = () => {
    if (video.hasAttribute("src")) byId("caption").textContent += " · this clip does not play";
  };
  video.src = event.clip;
}

function stop() {
  video.onloadedmetadata = null;
  video.pause();
  video.removeAttribute("src");
  video.load();
}

function show_picture(path) {
  stop();
  video.hidden = true;
  byId("picture").hidden = false;
  byId("picture").src = path;
}

// ---- What a person does

function fill(select, choices) {
  for (const [value, text] of choices) {
    const choice = element("option", "", text);
    choice.value = value;
    select.append(choice);
  }
  select.addEventListener("change", render);
}

fill(byId("camera"), [["", "All cameras"], ...cameras.map((camera) => [camera, camera])]);
fill(byId("hour"), [
  ["", "All hours"],
  [NIGHT, "22:00 to 6:00"],
  [DAY, "6:00 to 22:00"],
  ...Array.from({ length: 24 }, (_, hour) => [String(hour), `${pad(hour)}:00`]),
]);
byId("camera").hidden = cameras.length < 2;

byId("list").addEventListener("click", (click) => {
  const place = click.target.closest(".card")?.dataset.place;
  if (place !== undefined) open_event(Number(place));
});
byId("all-seen").addEventListener("click", () => {
  see(chosen());
  render();
});
byId("newer").addEventListener("click", () => open_event(current - 1));
byId("older").addEventListener("click", () => open_event(current + 1));
byId("close").addEventListener("click", () => player.close());
player.addEventListener("close", () => {
  stop();
  fill_hour(section_of[current]);
  document.querySelector(`[data-place="${current}"]`).scrollIntoView({ block: "nearest" });
});
document.addEventListener("keydown", (key) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[key.key];
  if (!player.open || !step) return;
  key.preventDefault();
  key.stopPropagation();
  open_event(current + step);
}, { capture: true });

render();
