/** Which words of a text differ from those of another. */

export interface Word {
  text: string;
  differs: boolean;
}

const WORD = /\s*[^\s]+|\s+$/gu;
const LONGEST = 600; // words that are compared; the table grows with their square

/** Split a text into words, or characters where a script has no spaces. */
export function words(text: string): string[] {
  const split = text.match(WORD) ?? [];
  return split.flatMap((word) => (isUnspaced(word) ? [...word] : [word]));
}

function isUnspaced(word: string): boolean {
  return /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]/u.test(word);
}

/** Mark the words of `text` that are not in a longest common subsequence with `base`. */
export function marked(text: string, base: string): Word[] {
  const a = words(text);
  const b = words(base);
  if (a.length > LONGEST || b.length > LONGEST) {
    return a.map((word, n) => ({ text: word, differs: word !== b[n] }));
  }
  const kept = common(a, b);
  return a.map((word, n) => ({ text: word, differs: !kept.has(n) }));
}

function common(a: string[], b: string[]): Set<number> {
  const width = b.length + 1;
  const lengths = new Uint16Array((a.length + 1) * width);
  const at = (i: number, j: number) => lengths[i * width + j] ?? 0;
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      const same = a[i]?.trim() === b[j]?.trim();
      lengths[i * width + j] = same ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
    }
  }
  const kept = new Set<number>();
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i]?.trim() === b[j]?.trim()) {
      kept.add(i);
      i++;
      j++;
    } else if (at(i + 1, j) >= at(i, j + 1)) i++;
    else j++;
  }
  return kept;
}
