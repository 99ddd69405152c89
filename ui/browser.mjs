// A browser for tests and pictures: reads commands as JSON lines, answers each with one JSON line.
// Every request beyond the page itself is aborted and reported.
import { chromium } from "playwright-core";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath: process.argv[2] ?? "/usr/bin/chromium", args: [...FLAGS, "--enable-precise-memory-info"] });
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
let context, page, frame, requests, errors;

const commands = {
  /** Opens a file, or a page of a server on this machine; `ready` is what to wait for. */
  async open({ file, url = "", width = 1200, height = 900, dark = false, ready = "html[data-ready=yes]", scale = 1, timeout = 30000, allow = false }) {
    await context?.close();
    context = await browser.newContext({ viewport: { width, height }, colorScheme: dark ? "dark" : "light", deviceScaleFactor: scale, offline: !allow && !url });
    page = await context.newPage();
    const origin = url && new URL(url).origin;
    requests = [];
    errors = [];
    page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
    page.on("pageerror", (error) => errors.push(error.message));
    await page.route("**/*", (route) => {
      const asked = route.request().url();
      const own = origin ? new URL(asked).origin === origin : asked === "file://" + file;
      if (own || asked.startsWith("data:") || asked.startsWith("about:")) return route.continue();
      requests.push(asked);
      return route.abort();
    });
    const start = performance.now();
    await page.goto(url || "file://" + file, { timeout });
    if (ready) await page.waitForSelector(ready, { timeout, state: "attached" });
    frame = page.mainFrame();
    return { milliseconds: performance.now() - start };
  },
  /** Goes into the first frame of the page. */
  async enter() {
    frame = await (await page.waitForSelector("iframe")).contentFrame();
    await frame.waitForSelector("html[data-ready=yes]", { state: "attached" });
  },
  evaluate: ({ code }) => frame.evaluate(code),
  async hover({ selector, x, y }) {
    await frame.locator(selector).first().hover({ position: { x, y } });
  },
  async click({ selector, x, y, shift = false }) {
    const position = x === undefined ? undefined : { x, y };
    await frame.locator(selector).first().click({ position, modifiers: shift ? ["Shift"] : [] });
  },
  async focus({ selector }) {
    await frame.locator(selector).first().focus();
  },
  press: ({ key }) => page.keyboard.press(key),
  async fill({ selector, text }) {
    await frame.locator(selector).first().fill(text);
  },
  async choose({ selector, value }) {
    await frame.locator(selector).first().selectOption(String(value));
  },
  async wait({ code, timeout = 30000 }) {
    const end = performance.now() + timeout; // asked from outside: a page's policy may forbid to evaluate text
    while (!(await frame.evaluate(code))) {
      if (performance.now() > end) throw new Error(`not within ${timeout} ms: ${code}`);
      await new Promise((done) => setTimeout(done, 15));
    }
  },
  text: ({ selector }) => frame.locator(selector).first().innerText(),
  async axe() {
    await frame.evaluate(axe);
    const found = await frame.evaluate("axe.run(document, { resultTypes: ['violations'] })");
    return found.violations.map(({ id, impact, nodes }) => ({ id, impact, nodes: nodes.slice(0, 5).map((node) => `${node.html.slice(0, 200)}: ${node.failureSummary}`) }));
  },
  async picture({ path, selector, full = false }) {
    if (selector) await frame.locator(selector).first().screenshot({ path });
    else await page.screenshot({ path, fullPage: full });
  },
  /** Opens a file and says when a canvas of it was first on the screen; milliseconds since the page began, or null. */
  async painted({ file, timeout = 60000, within = "canvas" }) {
    await context?.close();
    context = await browser.newContext({ viewport: { width: 1200, height: 900 }, offline: true, bypassCSP: true });
    page = await context.newPage();
    page.setDefaultTimeout(timeout);
    await page.addInitScript((within) => {
      const look = () => {
        const drawn = [...document.querySelectorAll(within)].some((one) => one.width > 1 && one.getBoundingClientRect().width > 1);
        if (drawn) requestAnimationFrame(() => requestAnimationFrame(() => (window.paintedAt = performance.now())));
        else requestAnimationFrame(look);
      };
      requestAnimationFrame(look);
    }, within);
    try {
      await page.goto("file://" + file, { timeout, waitUntil: "commit" });
      await page.waitForFunction("window.paintedAt", null, { timeout });
      frame = page.mainFrame();
      return await frame.evaluate("window.paintedAt");
    } catch (error) {
      if (!/Timeout|crash|closed/i.test(error.message)) throw error;
      return null;
    }
  },
  /** Milliseconds of each of many hovers along a line, until the page has a new layout. */
  async wander({ selector, steps = 60 }) {
    return frame.evaluate(
      async ([selector, steps]) => {
        const area = document.querySelector(selector);
        area.scrollIntoView();
        const box = area.getBoundingClientRect();
        const times = [];
        for (let i = 0; i < steps; i++) {
          const at = { clientX: box.left + (box.width * (i + 0.5)) / steps, clientY: box.top + box.height * (0.3 + (0.6 * i) / steps), bubbles: true };
          const start = performance.now();
          for (const kind of ["pointermove", "mousemove", "mouseover"]) (document.elementFromPoint(at.clientX, at.clientY) ?? area).dispatchEvent(new (kind === "pointermove" ? PointerEvent : MouseEvent)(kind, at));
          for (let turn = 0; turn < 8; turn++) await null; // views are drawn in the microtasks that follow
          document.body.getBoundingClientRect();
          times.push(performance.now() - start);
          await new Promise(requestAnimationFrame);
        }
        return times;
      },
      [selector, steps],
    );
  },
  async memory() {
    const session = await context.newCDPSession(page);
    await session.send("HeapProfiler.collectGarbage");
    const { usedSize, embedderHeapUsedSize = 0, backingStorageSize = 0 } = await session.send("Runtime.getHeapUsage");
    const whole = await browser.newBrowserCDPSession();
    const { processInfo } = await whole.send("SystemInfo.getProcessInfo");
    const renderers = processInfo.filter(({ type }) => type === "renderer").map(({ id }) => id);
    return { heap: usedSize + embedderHeapUsedSize + backingStorageSize, renderers };
  },
  report: () => ({ requests, errors }),
};

/** What was done has been drawn: handlers, events that they caused, and two frames are over. */
const settled = () => frame.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(null)))));
const ACTIONS = ["hover", "click", "focus", "press", "fill", "choose"];

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...options } = JSON.parse(line);
  if (command === "quit") break;
  try {
    const answer = await commands[command](options);
    if (ACTIONS.includes(command)) await settled();
    process.stdout.write(JSON.stringify({ answer: answer ?? null }) + "\n");
  } catch (error) {
    process.stdout.write(JSON.stringify({ error: error.message }) + "\n");
  }
}
await browser.close();
