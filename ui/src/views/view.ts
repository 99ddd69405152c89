// What every view is given.

import type { Data, Spec } from "../core/decode";
import type { Store } from "../core/store";

export interface ViewProps {
  spec: Spec;
  arrays: Record<string, Data>;
  store: Store;
  width: number;
}
