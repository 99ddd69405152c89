// The static page: draws every figure it holds, one after the other, and tells a surrounding frame its height.

import { fromBase64, gunzip, parse } from "./core/decode";
import { choose, theme } from "./core/theme";
import { fail, mount } from "./figure";

async function draw(holder: HTMLElement): Promise<void> {
  const source = holder.querySelector("script");
  if (!source) return;
  try {
    const packed = fromBase64(source.textContent ?? "");
    holder.textContent = ""; // the text is not needed any more, and large
    const { spec, arrays } = parse(await gunzip(packed));
    mount(holder, spec, arrays);
    holder.style.minHeight = "";
    holder.dataset.ready = "yes";
  } catch (error) {
    fail(holder, error instanceof Error ? error.message : String(error));
    holder.dataset.ready = "failed";
  }
}

function report(): void {
  if (parent !== window) parent.postMessage({ cutawayHeight: document.documentElement.getBoundingClientRect().height }, "*");
}

function themeButton(): void {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "ct-theme";
  button.textContent = "◐";
  button.setAttribute("aria-label", "dark or light");
  button.title = "dark or light";
  button.onclick = () => choose(theme.peek() === "dark" ? "light" : "dark");
  (document.querySelector(".ct-head") ?? document.body).prepend(button);
}

async function start(): Promise<void> {
  themeButton();
  new ResizeObserver(report).observe(document.documentElement);
  addEventListener("message", (event) => event.data?.cutawayAsk && report());
  for (const holder of document.querySelectorAll<HTMLElement>(".cutaway")) await draw(holder);
  document.documentElement.dataset.ready = "yes";
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  report();
}

void start();
