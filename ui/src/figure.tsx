// One figure: its title, the view that draws it, and a message where that fails.

import { Component, render, type ComponentChildren, type FunctionComponent } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { useSignal } from "@preact/signals";
import type { Data, Spec } from "./core/decode";
import { Store } from "./core/store";
import { Attention } from "./views/attention";
import { Attribution, planes } from "./views/attribution";
import { Bars } from "./views/bars";
import { Grid } from "./views/grid";
import { HeadTypes } from "./views/headtypes";
import { Layers } from "./views/layers";
import { Lines } from "./views/lines";
import { LogProbs } from "./views/logprobs";
import { Search } from "./views/search";
import { TableView } from "./views/table";
import { Tokens } from "./views/tokens";
import { TopK } from "./views/topk";
import type { ViewProps } from "./views/view";

const VIEWS: Record<string, FunctionComponent<ViewProps>> = {
  attention: Attention, attribution: Attribution, bars: Bars, grid: Grid, headtypes: HeadTypes, layers: Layers, lines: Lines,
  logprobs: LogProbs, search: Search, table: TableView, tokens: Tokens, topk: TopK,
};

class Guard extends Component<{ children: ComponentChildren; text: string }> {
  state = { error: "" };
  static getDerivedStateFromError(error: unknown) {
    return { error: String(error) };
  }
  render() {
    if (!this.state.error) return this.props.children;
    return <div role="alert"><p class="ct-error">This figure could not be drawn: {this.state.error}</p><pre class="ct-text">{this.props.text}</pre></div>;
  }
}

export function Figure({ spec, arrays, store }: Omit<ViewProps, "width">) {
  const root = useRef<HTMLElement>(null);
  const width = useSignal(0);
  useLayoutEffect(() => {
    const measure = () => (width.value = Math.floor(root.current!.clientWidth));
    measure();
    const watch = new ResizeObserver(measure);
    watch.observe(root.current!);
    return () => watch.disconnect();
  }, []);
  const View = VIEWS[spec.view];
  return (
    <figure ref={root} class="ct-figure" aria-label={spec.title || spec.view} data-view={spec.view}>
      {spec.title && <figcaption><bdi>{spec.title}</bdi></figcaption>}
      <Guard text={spec.text}>
        {!View ? <p class="ct-error">There is no view called {spec.view}.</p> : width.value > 0 && <View spec={spec} arrays={arrays} store={store} width={width.value} />}
      </Guard>
    </figure>
  );
}

/** How many panels a figure has: heads, heat maps, components. */
export function panels(spec: Spec, arrays: Record<string, Data>): number {
  if (spec.view === "attention") return spec.meta.heads.length;
  if (spec.view === "grid") return spec.meta.panels.length;
  if (spec.view === "attribution") return planes(spec.meta, arrays).length;
  if (spec.view === "tokens") return spec.meta.texts.length;
  return 1;
}

export function mount(element: Element, spec: Spec, arrays: Record<string, Data>): Store {
  const store = new Store(panels(spec, arrays));
  render(<Figure spec={spec} arrays={arrays} store={store} />, element);
  return store;
}

export function fail(element: Element, message: string): void {
  render(<p class="ct-error" role="alert">This figure could not be drawn: {message}</p>, element);
}
