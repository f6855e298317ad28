import os

from openai import OpenAI

client = OpenAI()
answer = client.chat.completions.create(
    model=os.environ["OPENAI_MODEL"],
    messages=[{"role": "user", "content": "Count to 5"}],
)
print(answer.choices[0].message.content)
