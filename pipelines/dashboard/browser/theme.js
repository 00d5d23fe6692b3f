// Light, dark, or as the system is. The head of the page sets it before anything is drawn: see pages.py.
import { reactive } from "vue";

const KEY = "sagascope-theme";
const CHOICES = ["auto", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");

/** `applied` is light or dark: what draws on a canvas reads its colours again when it changes. */
export const theme = reactive({ chosen: localStorage.getItem(KEY) ?? "auto", applied: "light" });

function apply() {
  theme.applied = theme.chosen === "auto" ? (system.matches ? "dark" : "light") : theme.chosen;
  document.documentElement.dataset.theme = theme.applied;
}

export function nextTheme() {
  theme.chosen = CHOICES[(CHOICES.indexOf(theme.chosen) + 1) % CHOICES.length];
  localStorage.setItem(KEY, theme.chosen);
  apply();
}

/** A colour of the style sheet, as a canvas needs it. */
export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

system.addEventListener("change", apply);
addEventListener("storage", (event) => {
  if (event.key !== KEY) return;
  theme.chosen = event.newValue ?? "auto";
  apply();
});
apply();
