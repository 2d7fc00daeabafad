/**
 * An image of twelve layers that containerd has, booted: the guest sees exactly the files that containerd's own mount shows.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execa } from "execa"
import { layerTar } from "../../scripts/imageArchive.ts"
import { startContainerd } from "../support/containerd.ts"
import { createInstance } from "../support/guests.ts"
import { image, layer, layerOf, type TestEntry } from "../support/layers.ts"
import { guestImage, inGuest, untilImage } from "../support/liveGuest.ts"
import { needsLiveHost } from "../support/liveHost.ts"
import { startService } from "../support/Service.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const dir = (name: string, mode = 0o755, more: Partial<TestEntry> = {}): TestEntry => ({
  name,
  type: "directory",
  mode,
  ...more
})
const file = (name: string, more: Partial<TestEntry> = {}): TestEntry => ({
  name,
  body: name,
  mode: 0o644,
  ...more
})
const symlink = (name: string, linkname: string): TestEntry => ({
  name,
  type: "symlink",
  linkname,
  mode: 0o777
})

/** Ten layers above the guest's own two: each changes what the ones below say. */
const upper: ReadonlyArray<ReadonlyArray<TestEntry>> = [
  [
    dir("opt/"),
    dir("opt/app/", 0o750, { uid: 1000, gid: 1000 }),
    file("opt/app/a", { uid: 1000 }),
    file("opt/app/b")
  ],
  [file("opt/app/.wh.a", { body: "" }), file("opt/app/c", { mode: 0o4755 })],
  [dir("srv/"), dir("srv/old/"), file("srv/old/one"), file("srv/old/two"), symlink("srv/link", "old/one")],
  [dir("srv/old/"), file("srv/old/.wh..wh..opq", { body: "" }), file("srv/old/three")],
  [file("opt/app/b", { body: "another b", mode: 0o600, gid: 7 })],
  [file(".wh.www", { body: "" })],
  [dir("www/"), file("www/index.html", { body: "back\n" }), dir("www/cgi-bin/")],
  [dir("var/"), dir("var/deep/"), dir("var/deep/er/", 0o711), file("var/deep/er/f", { mtime: new Date(0) })],
  [
    { name: "var/node", type: "character-device", devmajor: 1, devminor: 3, mode: 0o666 },
    dir("var/sticky/", 0o1777)
  ],
  [
    file("var/deep/grüße 世界", { body: "g" }),
    symlink("srv/link2", "/nowhere"),
    file("www/cgi-bin/run", {
      body: "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nhead -c \"$CONTENT_LENGTH\" | sh 2>&1\n",
      mode: 0o755
    })
  ]
]

const build = Effect.promise(async () => {
  const lower = await Promise.all(guestImage.layers.map(async (it) => layerOf(await layerTar(it))))
  const layers = [...lower, ...(await Promise.all(upper.map((it) => layer(it))))]
  return image(layers, {
    config: {
      Entrypoint: guestImage.entrypoint,
      Env: Object.entries(guestImage.env).map((it) => it.join("="))
    }
  })
})

/** What the guest's init makes or mounts, or the guest's process writes. */
const guestsOwn = ["dev", "proc", "sys", "run", "tmp", "etc/hostname", "etc/hosts", "etc/resolv.conf"]

/** Every name with its type, mode, owner, device and link, and every file with its content's sum. */
const listing = `find . ${guestsOwn.map((it) => `-path ./${it} -prune -o`).join(" ")} -exec stat -c '%N %F %a %u:%g %t,%T' {} +
find . ${guestsOwn.map((it) => `-path ./${it} -prune -o`).join(" ")} -type f -exec sha256sum {} +`

const lines = (text: string) =>
  text
    .split("\n")
    .filter((it) => it !== "")
    .toSorted()

describe("an image of twelve layers in containerd", { timeout: 180_000 }, () => {
  needsLiveHost(["containerd", "ctr"])

  it.live("boots, and the guest sees exactly what containerd's own mount shows", () =>
    Effect.gen(function* () {
      const containerd = yield* startContainerd()
      const built = yield* build
      const name = "example.org/twelve/layers:v1"
      yield* containerd.load("default", built, name)
      const service = yield* startService({
        env: { IMAGE_SOURCE: "containerd", CONTAINERD_SOCKET: containerd.socket }
      })
      const asked = yield* service.client.images.create({ payload: { name } })
      const ready = yield* untilImage(service, asked.id)
      assert.deepStrictEqual([ready.digest, ready.progress.layers_done], [built.digest, 12])
      const directory = yield* temporaryDirectory("mount")
      const script = `ctr --address "$1" --namespace default images mount "$2" "$3" >/dev/null; cd "$3"; exec busybox sh`
      const theirs = yield* Effect.promise(() =>
        execa("unshare", ["-m", "sh", "-ec", script, "sh", containerd.socket, name, directory], {
          input: listing
        })
      )
      const instance = yield* createInstance(service, { name: "Twelve layers", image: name })
      const ours = yield* inGuest(service, instance, `cd /\n${listing}`)
      assert.deepStrictEqual(lines(ours), lines(theirs.stdout))
      assert.include(ours, "character special file 666 0:0 1,3")
      assert.isAbove(lines(ours).length, 100)
      yield* service.client.instances.remove({ params: { id: instance.id } })
    }).pipe(Effect.scoped)
  )
})
