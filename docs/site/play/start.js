// Says what is missing, in a sentence, or starts the page. A plain script: modules do not load from file://.
(() => {
  const say = (sentence) => (document.getElementById("play-status").textContent = sentence);
  if (location.protocol === "file:")
    return say(
      "Browsers let no page load a network from a file. Serve this folder: run “python -m http.server” in it, " +
        "and open the address that it prints, with /play.html at its end.",
    );
  if (typeof WebAssembly !== "object")
    return say("This browser has no WebAssembly, or it is switched off; the network needs it to compute.");
  if (typeof DecompressionStream !== "function")
    return say("This browser is too old: it cannot unpack the network. Any of 2023 or later can.");
  say("Loading the network …");
  import("./main.js")
    .then((page) => page.start())
    .catch((error) => say(`The page could not start: a file of its folder “play” is missing or damaged (${error.message}).`));
})();
