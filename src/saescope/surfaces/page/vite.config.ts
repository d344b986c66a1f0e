import preact from "@preact/preset-vite";
import { defineConfig } from "vite";

// Names without hashes of the content: the built page is kept in the repository, and its history
// should show what changed.
export default defineConfig({
  plugins: [preact()],
  build: {
    outDir: "built",
    emptyOutDir: true,
    modulePreload: false,
    rollupOptions: {
      output: {
        entryFileNames: "page.js",
        chunkFileNames: "[name].js",
        assetFileNames: "page[extname]",
      },
    },
  },
  server: { proxy: { "/v1": "http://127.0.0.1:8000", "/health": "http://127.0.0.1:8000" } },
});
