"""The page, in a headless Chromium with a microphone and a camera that are files: ask, show, record, stop."""

import base64
import io
import json
import time

import numpy as np
import pytest
import soundfile
from browser import PATH, Browser
from PIL import Image
from serving import Slow, encoded, serving

import sft_omni
from omni import OmniModel
from omni.serve.about import About, about

pytestmark = pytest.mark.skipif(PATH is None, reason="no Chromium here to open the page with")
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
IDLE = "!document.querySelector('.busy') && document.querySelector('.retry')"
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    """A system with the facts about its run."""
    folder = tmp_path_factory.mktemp("run")
    sft_omni.main(["--config", toy.write(folder, num_epochs=1, eval_samples=4)])
    ckpt = str(folder / "out" / "omni_final.pt")
    system = OmniModel.load(ckpt, device="cpu")
    return system, about(system, ckpt)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    t = np.arange(48_000 * 2) / 48_000
    soundfile.write(folder / "microphone.wav", 0.4 * np.sin(2 * np.pi * 440 * t), 48_000, subtype="PCM_16")
    opened = Browser(folder, "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
                     f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}")
    yield opened
    opened.close()


@pytest.fixture
def page(browser, run):
    """The page of the run's system, loaded."""
    with serving(*run) as server:
        browser.problems.clear()
        browser.requests.clear()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        browser.open(address)
        browser.wait("document.querySelectorAll('#first-samples .sample').length === 4")
        browser.server, browser.address = server, address
        yield browser
        browser.call("Page.navigate", url="about:blank")
        assert browser.problems == []
        own = (address, f"blob:{address}", "about:", "data:")
        assert all(url.startswith(own) for url in browser.requests)


def ask(page, text: str) -> str:
    """Type a question, send it with Enter, and wait for the answer."""
    turns = page.js("document.querySelectorAll('.turn').length")
    page.js("document.getElementById('question').focus()")
    page.type(text)
    page.press("Enter")
    page.wait(f"document.querySelectorAll('.turn').length === {turns + 2} && {IDLE}")
    return page.text_of("#log li:last-child .bubble")


def drop(page, name: str, kind: str, content: bytes, event: str = "drop") -> None:
    """Drop or paste a file."""
    data = "dataTransfer" if event == "drop" else "clipboardData"
    kind_of_event = "DragEvent" if event == "drop" else "ClipboardEvent"
    page.js(f"""(() => {{
      const bytes = Uint8Array.from(atob({json.dumps(encoded(content))}), (letter) => letter.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], {json.dumps(name)}, {{type: {json.dumps(kind)}}}));
      document.dispatchEvent(new {kind_of_event}("{event}", {{{data}: transfer, cancelable: true}}));
    }})()""")


def test_questions_are_answered_with_memory_and_can_be_retried(page, run):
    system, _ = run
    first = ask(page, "What is 1 plus 1?")
    talk = [{"role": "user", "content": "What is 1 plus 1?"}]
    assert first == system.chat(talk) or first == "(an empty answer)"
    talk.append({"role": "assistant", "content": system.chat(talk)})
    talk.append({"role": "user", "content": "And 2 plus 2?"})
    assert ask(page, "And 2 plus 2?") in (system.chat(talk), "(an empty answer)")
    facts = page.text_of("#log li:last-child .meta")
    tokens = int(system.prompt(talk).layout.cu_seqlens[1])
    assert f"given {tokens} tokens: {tokens} text" in facts and "first token after" in facts
    page.click(".retry")
    page.wait(IDLE)
    assert page.js("document.querySelectorAll('.turn').length") == 4
    assert page.text_of("#log li:last-child .meta").split("first")[0] == facts.split("first")[0]
    page.click("#new")
    page.wait("document.querySelectorAll('.turn').length === 0 && !document.getElementById('empty').hidden")


def test_pictures_are_dropped_pasted_and_taken(page, toy):
    picture = (toy.root / "data" / "image_text" / "val_0.png").read_bytes()
    for count, event in enumerate(("drop", "paste"), 1):
        drop(page, "cat.png", "image/png", picture, event)
        page.wait(f"document.querySelectorAll('#tray img').length === {count}")
    page.click("#camera")
    page.wait("document.querySelector('video').videoWidth && document.querySelector('dialog[open]')")
    page.click("#camera-view [value=take]")
    page.wait("document.querySelectorAll('#tray img').length === 3")
    page.click("#tray li:first-child .remove")
    page.wait("document.querySelectorAll('#tray img').length === 2")
    ask(page, "What color?")
    assert "8 picture" in page.text_of("#log li:last-child .meta")  # 4 tokens each
    assert page.js("document.querySelectorAll('.mine img').length") == 2
    assert page.js("document.getElementById('tray').hidden")


def test_a_clip_is_recorded_by_holding_and_its_waveform_is_drawn(page):
    page.mouse("mousePressed", "#record")
    page.wait("parseFloat(document.getElementById('recording-time').textContent) > 1")
    assert page.js("document.getElementById('record').getAttribute('aria-pressed')") == "true"
    page.mouse("mouseReleased", "#record")
    page.wait("document.querySelector('#tray .clip')")
    seconds = float(page.text_of("#tray .time").split()[0])
    assert 0.9 < seconds < 5
    drawn = ("(() => { const c = document.querySelector('#tray canvas'), blank = c.cloneNode();"
             " return c.width > 0 && c.toDataURL() !== blank.toDataURL(); })()")
    page.wait(drawn)
    ask(page, "Transcribe.")
    frames = seconds * 12.5
    sound = int(page.text_of("#log li:last-child .meta").split(" sound")[0].split()[-1])
    assert abs(sound - frames) < 3
    page.click(".mine .clip button")
    page.wait("document.querySelector('.mine .clip button').getAttribute('aria-label').startsWith('Pause')")


def test_recording_by_keyboard_and_what_was_heard_is_the_fixture(page):
    sent = ("window.sent = []; const real = fetch; window.fetch = (path, options) => {"
            "if (options?.body) window.sent.push(JSON.parse(options.body)); return real(path, options); }; 1")
    page.js(sent)
    page.js("document.getElementById('record').focus()")
    page.press(" ")  # shortly: it goes on until the next press
    page.wait("parseFloat(document.getElementById('recording-time').textContent) > 0.8")
    page.press("Enter")
    page.wait("document.querySelector('#tray .clip')")
    ask(page, "Transcribe.")
    part = page.js("window.sent[0].messages[0].content[0]")
    assert part["type"] == "input_audio" and part["input_audio"]["format"] == "wav"
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
    assert rate == 16_000 and wave.ndim == 1
    spectrum = np.abs(np.fft.rfft(wave[2000:10_000]))
    assert abs(spectrum.argmax() * rate / 8000 - 440) < 5


def test_a_held_out_sample_is_asked_with_one_click_and_shows_its_reference(page, run):
    system, facts = run
    for number in range(1, 5):
        page.click(f"#first-samples .sample:nth-child({number})")
        page.wait(f"document.querySelectorAll('.turn').length >= 2 && {IDLE}")
        reference = page.text_of(".reference").removeprefix("Reference: ")
        assert reference in [sample["reference"] for sample in facts.samples]
        page.click("#new")
    page.js("(() => { const s = document.getElementById('set'); s.selectedIndex = 2;"
            " s.dispatchEvent(new Event('change')); })()")
    page.click("#set-samples .sample")
    page.wait(f"document.querySelector('.reference') && {IDLE}")
    assert "Thinker" in page.text_of("#parts") and "image_qa" in page.text_of("#figures")


def test_an_answer_streams_and_is_stopped(browser, run):
    slow = Slow(run[0], 0.05)
    with serving(slow, About("slow")) as server:
        browser.open(f"http://127.0.0.1:{server.server_address[1]}/")
        browser.wait("document.getElementById('model')?.textContent === 'slow'")
        browser.js("document.getElementById('length').value = 200")
        browser.js("document.getElementById('question').focus()")
        browser.type("go on")
        browser.press("Enter")
        browser.wait("document.querySelector('.busy .bubble')?.textContent.length > 3")
        browser.click("#stop")
        browser.wait(IDLE)
        said = browser.text_of("#log li:last-child .bubble")
        assert 3 < len(said) < 150 and set(said) == {"x"}
        assert "stopped" in browser.text_of("#log li:last-child .meta")
        tokens = slow.tokens
        time.sleep(1)
        assert slow.tokens < tokens + 10  # in a second it would make 20
        browser.call("Page.navigate", url="about:blank")


def test_text_is_text(browser, run):
    """Markup in a question, an answer, the system's name and a sample."""
    facts = About(EVIL, [{"name": EVIL, "parameters": 1}], [{"name": EVIL, "value": EVIL, "swapped": EVIL}],
                  [{"source": EVIL, "before": [["system", EVIL]], "question": EVIL, "reference": EVIL,
                    "images": 0, "audios": 0}], [[]])
    with serving(Slow(run[0], 0, EVIL), facts) as server:
        browser.problems.clear()
        browser.open(f"http://127.0.0.1:{server.server_address[1]}/")
        browser.wait("document.querySelector('.sample')")
        browser.js("document.getElementById('length').value = 2")
        browser.click("#first-samples .sample")
        browser.wait(IDLE)
        ask(browser, EVIL)
        assert browser.text_of("#log").count(EVIL) == 2 * 2 + 4 and EVIL in browser.text_of("#parts")
        assert browser.js("document.querySelectorAll('main img, script:not([src])').length") == 0
        assert browser.problems == []
        browser.js("(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
                   " document.body.append(s); })()")  # the policy forbids what slips in
        assert browser.js("window.ran") is None and "Content Security Policy" in browser.problems[0]
        browser.call("Page.navigate", url="about:blank")


def test_a_failed_question_says_why_and_a_token_is_asked_for(browser, run):
    with serving(*run, token=TOKEN) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        browser.open(address)
        browser.wait("document.querySelector('#token-view[open]')")
        browser.js("document.getElementById('token').focus()")
        browser.type(TOKEN)
        browser.press("Enter")
        browser.wait("document.querySelectorAll('#set-samples img').length")  # these need the token too
        drop(browser, "broken.png", "image/png", b"no picture")
        browser.wait("document.querySelector('#tray li')")
        assert "image 1: not an image" in ask(browser, "What?")
        assert "not an image" in browser.js("document.querySelector('[role=alert]').textContent")
        ask(browser, "hi")  # the failed question is not part of the conversation
        browser.js("sessionStorage.clear()")
        browser.open(f"{address}?#token={TOKEN}")
        browser.wait("document.querySelector('.sample')")
        assert browser.js("location.hash") == ""
        browser.call("Page.navigate", url="about:blank")


@pytest.mark.parametrize("width, height", [(1280, 860), (390, 844), (320, 640)])
@pytest.mark.parametrize("dark", [True, False])
def test_the_page_fits_and_follows_the_color_scheme(page, tmp_path, width, height, dark):
    page.look(width, height, dark)
    ask(page, "What is " + "very " * 40 + "x" * 300)
    for state in ("", "document.getElementById('menu').click()"):
        page.js(state or "0")
        assert page.js("document.documentElement.scrollWidth <= innerWidth")
        assert page.js("document.documentElement.scrollHeight <= innerHeight")
    corner = Image.open(page.screenshot(tmp_path / "page.png")).convert("L").getpixel((2, 2))
    assert corner < 60 if dark else corner > 200


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(page):
    page.js("document.activeElement.blur()")
    reached = []
    for _ in range(40):
        page.press("Tab")
        reached.append(page.js("document.activeElement.id"))
    assert {"new", "question", "picture", "camera", "sound", "record", "send", "temperature", "length",
            "set"} <= set(reached)
    unnamed = page.js("""[...document.querySelectorAll('button, input:not([hidden]), select, textarea')]
      .filter((e) => !(e.ariaLabel || e.innerText?.trim() || e.labels?.length))
      .filter((e) => !e.closest('[hidden], dialog'))
      .map((e) => e.id)""")
    assert unnamed == []
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {node["role"]["value"] for node in tree if "role" in node}
    assert {"main", "complementary", "status", "textbox", "slider", "combobox"} <= roles
    ask(page, "hi")
    assert page.js("document.getElementById('status').textContent").startswith("It ")
