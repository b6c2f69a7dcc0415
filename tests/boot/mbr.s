# The boot code of a composed disk's master boot record (sqlimage/media/bootcode.py, MBR_BOOT_CODE).
#
#   as --32 -o mbr.o mbr.s && ld -m elf_i386 -Ttext 0x600 -e start -o mbr.elf mbr.o && objcopy -O binary mbr.elf mbr.bin
#
# The firmware loads it to 0000:7C00 with the drive in DL. It starts the first sector of the active partition at the
# same place, with DL kept and DS:SI at the partition record, as boot sectors have expected since DOS.

        .code16
        .globl  start

        .set    loaded, 0x7c00          # where firmware puts a boot sector, and where the next one belongs
        .set    records, 0x7be          # the partition records, 446 bytes into the copy at 0x600

start:  cli
        xorw    %ax, %ax
        movw    %ax, %ss
        movw    $loaded, %sp
        movw    %ax, %ds
        movw    %ax, %es
        movw    %sp, %si
        movw    $0x600, %di
        movw    $256, %cx
        cld
        rep movsw                       # out of the way of the sector that is to come
        ljmp    $0, $moved
moved:  sti

        movw    $records, %si
        movb    $4, %cl                 # CH is 0 from the copy
search: testb   $0x80, (%si)
        jnz     found
        addw    $16, %si
        loop    search
        movw    $none, %si
        jmp     say

found:  movw    %dx, %bp                # some firmware returns another DX than it was given
        movw    $0x55aa, %bx
        movb    $0x41, %ah
        int     $0x13                   # extensions present?
        jc      chs
        cmpw    $0xaa55, %bx
        jne     chs
        testb   $1, %cl                 # packet structure supported?
        jz      chs
        movw    %bp, %dx
        pushw   %si
        pushl   $0                      # disk address packet, from its end: LBA bits 32 to 63,
        pushl   8(%si)                  # StartingLBA,
        pushl   $loaded                 # buffer 0000:7C00,
        pushl   $0x10010                # one sector, packet of 16 bytes
        movw    %sp, %si
        movb    $0x42, %ah
        int     $0x13
        leaw    16(%esp), %sp           # keeps the carry flag
        popw    %si
        jmp     done

chs:    movw    %bp, %dx
        movb    1(%si), %dh             # StartingCHS: head,
        movw    2(%si), %cx             # sector and cylinder as INT 13h wants them
        movw    $loaded, %bx
        movw    $0x201, %ax
        int     $0x13
done:   movw    $error, %di
        jc      fail
        movw    $strange, %di
        cmpw    $0xaa55, loaded + 510
        jne     fail
        movw    %bp, %dx
        ljmp    $0, $loaded

fail:   movw    %di, %si
say:    lodsb
        testb   %al, %al
        jz      stop
        movb    $0x0e, %ah
        movw    $7, %bx
        int     $0x10
        jmp     say
stop:   hlt
        jmp     stop

none:   .asciz  "no active partition\r\n"
strange: .asciz "not bootable\r\n"
error:  .asciz  "read error\r\n"
