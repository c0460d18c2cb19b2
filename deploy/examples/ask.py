"""Ask a question about a photo, and print the answer as it comes.

python ask.py ADDRESS photo.jpg "What is this?"
"""

from __future__ import annotations

import sys

from preprocessor.client import CallFailed, Client, chat, image


def main(address: str, photo: str, question: str) -> None:
    prompt = chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [image(photo), question]}])
    with Client(address) as client:
        print(client.count_tokens(prompt).token_count, "tokens in the prompt", file=sys.stderr)
        with client.generate(prompt, max_tokens=64, timeout_seconds=60) as answer:
            for delta in answer:
                print(delta.text, end="", flush=True)
    print()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except CallFailed as error:
        sys.exit(f"{error.reason}: {error.message}")
