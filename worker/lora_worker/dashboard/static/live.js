// Keeps an open page up to date: asks for it again every two seconds, and replaces the parts that have changed.
// Without this script, the page works too, and reloads itself every ten seconds.
"use strict";

(() => {
  const PAUSE_SECONDS = 2;
  const LONGEST_PAUSE_SECONDS = 15;
  const ANSWER_SECONDS = 20;

  const connection = document.getElementById("connection");
  let pause = PAUSE_SECONDS;

  // Only a new text is written: screen readers read the element aloud whenever it changes.
  function say(text) {
    if (connection.textContent !== text) connection.textContent = text;
    connection.hidden = text === "";
  }

  function partsOf(root) {
    return [...root.querySelectorAll("[data-live]")];
  }

  // An opened table stays open.
  function keepOpen(old, fresh) {
    for (const details of old.querySelectorAll("details[open]")) {
      const same = fresh.querySelector(`#${CSS.escape(details.id)}`);
      if (same !== null) same.open = true;
    }
  }

  // The link or button with the keyboard's focus is found again by its id or its target.
  function focusedIn(part) {
    const element = document.activeElement;
    if (element === null || element === part || !part.contains(element)) return null;
    if (element.id) return `#${CSS.escape(element.id)}`;
    const target = element.getAttribute("href");
    return target === null ? null : `[href="${CSS.escape(target)}"]`;
  }

  // Text that somebody is selecting is left alone until the selection is gone.
  function isSelected(part) {
    const selection = document.getSelection();
    return selection !== null && !selection.isCollapsed && selection.containsNode(part, true);
  }

  function replace(old, fresh) {
    keepOpen(old, fresh);
    if (old.innerHTML === fresh.innerHTML || isSelected(old)) return;
    const focused = focusedIn(old);
    old.replaceChildren(...fresh.childNodes);
    if (focused !== null) old.querySelector(focused)?.focus({ preventScroll: true });
  }

  function show(page) {
    const fresh = new Map(partsOf(page).map((part) => [part.id, part]));
    const shown = partsOf(document);
    if (shown.length !== fresh.size || shown.some((part) => !fresh.has(part.id))) {
      location.reload(); // It has become another page, as when the database could not be read at first.
      return;
    }
    for (const part of shown) replace(part, fresh.get(part.id));
    if (document.title !== page.title) document.title = page.title;
  }

  async function refresh() {
    const answer = await fetch(location.href, {
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(ANSWER_SECONDS * 1000),
    });
    if (answer.status === 401) {
      say("Your session has ended: open the URL that the dashboard's command has printed.");
      return false;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    say("");
    pause = PAUSE_SECONDS;
    return true;
  }

  async function keepUpToDate() {
    for (;;) {
      await new Promise((wake) => setTimeout(wake, pause * 1000));
      if (document.visibilityState === "hidden") {
        await new Promise((wake) => document.addEventListener("visibilitychange", wake, { once: true }));
      }
      try {
        if (!(await refresh())) return;
      } catch {
        say("The dashboard does not answer. This page shows what it knew last, and tries again by itself.");
        pause = Math.min(pause * 2, LONGEST_PAUSE_SECONDS);
      }
    }
  }

  // What was just done is said once, and not again after a reload.
  const url = new URL(location.href);
  if (url.searchParams.has("done")) {
    url.searchParams.delete("done");
    history.replaceState(null, "", url);
  }
  if (partsOf(document).some((part) => part.id !== "database")) keepUpToDate();
})();
