/**
 * The smallest guest that shows whether a VMM works: an ELF file with a PVH entry (Xen's direct boot protocol,
 * docs/misc/pvh.pandoc; note XEN_ELFNOTE_PHYS32_ENTRY) and some hundred bytes of 32-bit machine code, which prints
 * `tick 1`, `tick 2` ... on the first serial port and, if so told, ends at a number. It needs no disk, no memory to
 * speak of and no driver, so a counter that goes on at N+1 after a restore is all that has to be seen. It runs as the
 * guest's kernel, one instruction at a time where KVM interprets those, and needs nothing that KVM does not.
 */

/** What it does at the end of its count. */
export type CounterEnd = "poweroff" | "reset" | "panic"

export interface CounterPlan {
  /** Counts so far, then ends; forever where it is not given. */
  readonly until?: { readonly tick: number; readonly end: CounterEnd }
}

/** Where code and data stand in the guest's memory: 1 MiB, above what the firmware of a PC claims. */
const loadAddress = 0x10_0000
const textAddress = 0x10_1000
/** Reads of the serial port between two numbers, each an exit to the VMM: some milliseconds on any host. */
const pacing = 500

const serialData = 0x3f8
const serialStatus = 0x3fd
/** Cloud Hypervisor's ACPI sleep control and reset register; both are in its FADT. */
const acpiPort = 0x600
const acpiPowerOff = 0x34
const acpiReset = 0x01
/** pvpanic-pci: vendor 1b36, device 0011; a write of 1 to its first BAR (qemu.org, specs/pvpanic). */
const panicDevice = 0x0011_1b36

const le16 = (value: number) => [value & 0xff, (value >> 8) & 0xff]
const le32 = (value: number) => [...le16(value), ...le16(value >>> 16)]
const le64 = (value: number) => [...le32(value), 0, 0, 0, 0]

/** One instruction, or some that belong together. */
const op = (...bytes: ReadonlyArray<number>) => bytes

/** A short jump over the bytes of `body`, back to its beginning. */
const again = (opcode: number, body: ReadonlyArray<number>) => [opcode, 0x100 - body.length - 2]
const jnz = 0x75
const jz = 0x74
const loop = 0xe2
const jmp = 0xeb

/** dx := port. */
const port = (number: number) => [0x66, 0xba, ...le16(number)]

/** ebp in decimal before the line end at `textAddress`; edi then names its first digit. */
const digits = (() => {
  const digit = [
    ...op(0x31, 0xd2), //         xor edx, edx
    ...op(0xf7, 0xf3), //         div ebx
    ...op(0x80, 0xc2, 0x30), //   add dl, '0'
    0x4f, //                    dec edi
    ...op(0x88, 0x17), //         mov [edi], dl
    ...op(0x85, 0xc0) //          test eax, eax
  ]
  return [
    ...op(0x89, 0xe8), //                      mov eax, ebp
    ...op(0xbf, ...le32(textAddress)), //      mov edi, text
    ...op(0xc6, 0x07, 0x0a), //                mov byte [edi], '\n'
    ...op(0xbb, ...le32(10)), //               mov ebx, 10
    ...digit,
    ...again(jnz, digit)
  ]
})()

/** `tick ` before the digits; esi names it. */
const prefix = [
  ...op(0xc7, 0x47, 0xfb, ...Buffer.from("tick")), // mov dword [edi-5], "tick"
  ...op(0xc6, 0x47, 0xff, 0x20), //                   mov byte [edi-1], ' '
  ...op(0x8d, 0x77, 0xfb) //                          lea esi, [edi-5]
]

/** The text at esi, up to and with its line end. */
const print = (() => {
  const ready = [...port(serialStatus), 0xec, 0xa8, 0x20] // in al, dx; test al, THR empty
  const character = [
    ...ready,
    ...again(jz, ready),
    ...port(serialData),
    ...op(0x8a, 0x06, 0xee, 0x46), // mov al, [esi]; out dx, al; inc esi
    ...op(0x3c, 0x0a) //              cmp al, '\n'
  ]
  return [...character, ...again(jnz, character)]
})()

const pace = (() => {
  const read = [0xec] // in al, dx
  return [...port(serialStatus), 0xb9, ...le32(pacing), ...read, ...again(loop, read)]
})()

/** Slot by slot of bus 0 until the panic device is found, then the write. */
const panic = (() => {
  const next = [
    ...op(0x81, 0xc1, ...le32(0x800)), //               add ecx, one slot
    ...op(0x89, 0xc8), //                               mov eax, ecx
    ...op(...port(0xcf8), 0xef, ...port(0xcfc), 0xed), // out dx, eax; in eax, dx
    ...op(0x3d, ...le32(panicDevice)) //                cmp eax, device
  ]
  return [
    ...op(0xb9, ...le32(0x8000_0000)), // mov ecx, bus 0
    ...next,
    ...again(jnz, next),
    ...op(0x8d, 0x41, 0x10), //           lea eax, [ecx+BAR0]
    ...op(...port(0xcf8), 0xef, ...port(0xcfc), 0xed),
    ...op(0x83, 0xe0, 0xf0), //           and eax, ~15
    ...op(0xc6, 0x00, 0x01) //            mov byte [eax], 1
  ]
})()

const write = (value: number) => [...port(acpiPort), 0xb0, value, 0xee] // mov al, value; out dx, al

const endings: Readonly<Record<CounterEnd, ReadonlyArray<number>>> = {
  poweroff: write(acpiPowerOff),
  reset: write(acpiReset),
  panic
}

const codeOf = ({ until }: CounterPlan): ReadonlyArray<number> => {
  const begin = [0x31, 0xed] // xor ebp, ebp
  const turn = [0x45, ...digits, ...prefix, ...print, ...pace] // inc ebp; ...
  const rest = [0xf4, jmp, 0xfd] // hlt, for ever
  if (until === undefined) return [...begin, ...turn, ...again(jmp, turn)]
  const body = [...turn, 0x81, 0xfd, ...le32(until.tick)] // cmp ebp, tick
  return [...begin, ...body, ...again(jnz, body), ...endings[until.end], ...rest]
}

const headerBytes = 64
const programBytes = 56
const codeOffset = 0x200

/** XEN_ELFNOTE_PHYS32_ENTRY (18) of owner "Xen": the address of the first instruction. */
const note = [...le32(4), ...le32(4), ...le32(18), ...Buffer.from("Xen\0"), ...le32(loadAddress)]

const program = (type: number, offset: number, address: number, fileBytes: number, memoryBytes: number) => [
  ...op(...le32(type), ...le32(7)),
  ...[offset, address, address, fileBytes, memoryBytes, 4].flatMap(le64)
]

/** The guest as a kernel file for `payload.kernel`. */
export const counterGuest = (plan: CounterPlan = {}): Uint8Array => {
  const code = codeOf(plan)
  const noteOffset = headerBytes + 2 * programBytes
  const image = Buffer.alloc(codeOffset + code.length)
  image.set([
    ...op(0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ...op(...le16(2), ...le16(62), ...le32(1)), // executable, x86-64
    ...[loadAddress, headerBytes, 0].flatMap(le64),
    ...op(...le32(0), ...[headerBytes, programBytes, 2, 0, 0, 0].flatMap(le16)),
    ...program(1, codeOffset, loadAddress, code.length, 0x2000),
    ...program(4, noteOffset, 0, note.length, note.length),
    ...note
  ])
  image.set(code, codeOffset)
  return image
}
