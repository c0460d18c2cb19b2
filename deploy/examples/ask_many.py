"""Ask the same about many photos, eight at a time.

python ask_many.py ADDRESS "What is this?" photo1.jpg photo2.jpg …
"""

from __future__ import annotations

import asyncio
import sys

from preprocessor.client import AsyncClient, CallFailed, chat, image

AT_ONCE = 8


async def main(address: str, question: str, *photos: str) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def ask(photo: str) -> None:
        async with slots:
            prompt = chat([{"role": "user", "content": [image(photo), question]}])
            try:
                async with client.generate(prompt, max_tokens=64, timeout_seconds=60) as answer:
                    print(f"{photo}: {await answer.read()}")
            except CallFailed as error:  # one photo that cannot be read does not end the others
                print(f"{photo}: {error.reason}: {error.message}", file=sys.stderr)

    async with AsyncClient(address) as client:
        await asyncio.gather(*map(ask, photos))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
