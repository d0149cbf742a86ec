const LINES = 60

/** The one card to show, in a tab that leaves the other ones' connections alone. */
const only = ['board', 'resumable', 'channels'].find(id => id === new URLSearchParams(location.search).get('card'))

const pick = list => list[Math.floor(Math.random() * list.length)]

const follow = element => (element.scrollTop = element.scrollHeight)

const showCode = async file => {
  const dialog = document.querySelector('dialog')
  dialog.querySelector('code').textContent = `example/${file}`
  dialog.querySelector('pre').textContent = await (await fetch(`/source/${file}`)).text()
  dialog.showModal()
}

/** Makes a card of an article: its frame, its status dot, and the list of what arrives. */
const card = id => {
  const root = document.getElementById(id)
  const frame = document.getElementById('frame').content.cloneNode(true)
  const $ = selector => root.querySelector(selector)
  const file = `${id}.ts`
  root.prepend(frame.querySelector('header'))
  root.append(frame)
  $('h2').textContent = root.dataset.title
  $('.route').textContent = root.dataset.route
  $('.code').textContent = `The server’s code: example/${file}`
  $('.code').addEventListener('click', () => showCode(file))
  const state = (name, text = name) => {
    root.dataset.state = name
    $('.status').textContent = text
  }
  const arrived = (type, data, bad = false) => {
    const line = document.createElement('li')
    const name = document.createElement('b')
    name.textContent = type
    line.append(name, JSON.stringify(data).slice(1, -1).replaceAll('\\"', '"'))
    line.classList.toggle('bad', bad)
    const wire = $('.wire')
    wire.append(line)
    if (wire.children.length > LINES) wire.firstChild.remove()
    follow(wire)
  }
  const button = (name, click) => {
    const element = $(`button[name=${name}]`)
    if (click) element.addEventListener('click', click)
    return element
  }
  return { $, state, arrived, button }
}

/** Reads `url` with an EventSource, which reconnects by itself, with the id of the last event that it has seen if there was one. */
const subscribe = (url, { state, arrived }, handlers) => {
  const source = new EventSource(url)
  state('connecting')
  source.onopen = () => state('open')
  source.onerror = () => (source.readyState === EventSource.CLOSED ? state('refused') : state('connecting', 'reconnecting'))
  const handled = { 'stream-position': () => {}, farewell: () => {}, ...handlers }
  for (const [type, handle] of Object.entries(handled)) {
    source.addEventListener(type, ({ data, lastEventId }) => {
      arrived(type, data || (lastEventId && `id ${lastEventId}`), type === 'stream-reset')
      handle(data)
    })
  }
  return source
}

const parse = block => {
  const event = { type: 'message', data: [] }
  for (const line of block.split('\n')) {
    const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line)
    if (field === 'event') event.type = value
    if (field === 'data') event.data.push(value)
  }
  return { type: event.type, data: event.data.join('\n'), empty: event.data.length === 0 }
}

/** The events of a response's body. Enough for this server, which ends its lines with LF. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return
    const blocks = (text + value).split('\n\n')
    text = blocks.pop()
    yield* blocks.map(parse).filter(event => !event.empty)
  }
}

/** Reads `url` with fetch, which can set headers, send a body, see the status, and be aborted. */
const read = async (url, init, { state, arrived }, handle) => {
  state('connecting')
  try {
    const response = await fetch(url, init)
    if (!response.ok) {
      arrived(response.status, `${response.statusText}: ${await response.text()}`, true)
      state('refused', `${response.status} ${response.statusText}`)
      return `${response.status} ${response.statusText}`
    }
    state('open')
    for await (const { type, data } of events(response.body)) {
      arrived(type, data)
      if (type !== 'farewell') handle(data)
    }
    state('ended')
  } catch {
    if (init.signal.aborted) state('ended', 'stopped')
    else state('refused', 'broken off')
  }
}

/** A connection that is there while it is wanted and the page is seen: hidden tabs give theirs back. */
const whileVisible = (connect, hidden = () => {}) => {
  let wanted = true
  let disconnect
  const update = () => {
    if (wanted && !document.hidden) return (disconnect ??= connect())
    disconnect?.()
    disconnect = undefined
    hidden()
  }
  document.addEventListener('visibilitychange', update)
  update()
  return () => {
    wanted = !wanted
    update()
    return wanted
  }
}

const flash = (element, text) => {
  if (element.textContent === text) return
  element.textContent = text
  if (!matchMedia('(prefers-reduced-motion: reduce)').matches) element.animate({ color: ['var(--accent)', 'var(--text)'] }, 600)
}

const say = (element, headline, ...text) => {
  const strong = document.createElement('strong')
  strong.textContent = headline
  element.replaceChildren(strong, ...text)
}

const note = (list, who, text, kind = '') => {
  const line = document.createElement('li')
  const name = document.createElement('b')
  name.textContent = who
  line.append(name, ' ', text)
  line.className = kind
  list.append(line)
  if (list.children.length > LINES) list.firstChild.remove()
  follow(list)
}

/** As fetch, but a server that is away, while it restarts perhaps, has an answer, too. */
const ask = (url, init) => fetch(url, init).catch(() => new Response('The server is away. Try again.', { status: 503 }))

const post = (url, body, headers = {}) =>
  ask(url, { method: 'POST', headers: { 'Content-Type': 'application/json', ...headers }, body: JSON.stringify(body) })

const showCounts = data => {
  const { open, events, released } = JSON.parse(data)
  const all = { open, events, released: Object.values(released).reduce((sum, count) => sum + count, 0) }
  for (const element of document.querySelectorAll('[data-count]')) flash(element, all[element.dataset.count].toLocaleString('en'))
  for (const [id, count] of Object.entries(released)) flash(document.querySelector(`#${id} .released`), `generator released ${count}×`)
}

const counts = ({ process, farewell }) => {
  const source = new EventSource('/counts')
  source.addEventListener('counts', ({ data }) => showCounts(data))
  source.addEventListener('process', ({ data }) => process(JSON.parse(data).pid))
  source.addEventListener('farewell', ({ data }) => farewell(data))
  return () => source.close()
}

const clock = () => {
  const view = card('clock')
  const show = time => {
    view.$('time').textContent = time.slice(11, 19)
    view.$('time').dateTime = time
  }
  const toggle = whileVisible(
    () => {
      const source = subscribe('/clock', view, { time: show })
      return () => source.close()
    },
    () => view.state('idle', 'disconnected'),
  )
  view.button('toggle', ({ target }) => (target.textContent = toggle() ? 'Disconnect' : 'Connect'))
}

const progress = () => {
  const view = card('progress')
  const show = data => {
    const { percent, step } = JSON.parse(data)
    view.$('progress').value = percent
    view.$('strong').textContent = `${percent} %`
    view.$('.name').textContent = step
  }
  const start = view.button('start', () => {
    start.disabled = true
    const done = () => {
      source.close()
      view.state('ended', 'finished')
      start.disabled = false
    }
    const source = subscribe('/progress', view, { progress: show, done })
    source.addEventListener('error', () => (start.disabled = source.readyState !== EventSource.CLOSED))
  })
}

const tokens = () => {
  const view = card('tokens')
  const answer = view.$('.answer')
  const start = view.button('start')
  let controller
  const stop = view.button('stop', () => controller.abort())
  const running = on => {
    start.disabled = on
    stop.disabled = !on
  }
  const show = token => {
    answer.append(token)
    follow(answer)
  }
  view.$('form').addEventListener('submit', async submit => {
    submit.preventDefault()
    controller = new AbortController()
    answer.textContent = ''
    running(true)
    const body = JSON.stringify({ prompt: view.$('input').value })
    const headers = { 'Content-Type': 'application/json' }
    await read('/tokens', { method: 'POST', headers, body, signal: controller.signal }, view, show)
    running(false)
  })
}

const auth = () => {
  const view = card('auth')
  const answer = view.$('.answer')
  let controller = new AbortController()
  const show = data => {
    const { user, unread } = JSON.parse(data)
    say(answer, `Hello, ${user}`, `${unread} unread`)
  }
  const knock = async (url, headers) => {
    controller.abort()
    const mine = (controller = new AbortController())
    stop.disabled = false
    const refused = await read(url, { headers, signal: mine.signal }, view, show)
    if (refused) say(answer, refused, 'An ordinary answer, and no stream.')
    if (mine === controller) stop.disabled = true
  }
  const stop = view.button('stop', () => controller.abort())
  view.button('none', () => knock('/auth'))
  view.button('header', () => knock('/auth', { Authorization: 'Bearer token-of-ada' }))
  view.button('query', () => knock('/auth?token=token-of-grace'))
}

const resumable = () => {
  const view = card('resumable')
  const answer = view.$('.answer')
  const start = view.button('start')
  const reload = view.button('reload', () => location.reload())
  const running = on => {
    start.disabled = on
    reload.disabled = !on
  }
  const connect = id => {
    running(true)
    const source = subscribe(`/answers/${id}`, view, {
      question: prompt => {
        view.$('input').value = prompt
        answer.textContent = ''
      },
      token: token => {
        answer.append(token)
        follow(answer)
      },
      done: () => {
        source.close()
        view.state('ended', 'finished')
        running(false)
      },
      // Words are missing: once more, from the first one.
      'stream-reset': () => {
        source.close()
        connect(id)
      },
    })
    source.addEventListener('error', () => {
      if (source.readyState !== EventSource.CLOSED) return
      view.state('refused', 'no such answer')
      history.replaceState(null, '', location.pathname + location.search)
      running(false)
    })
  }
  view.$('form').addEventListener('submit', async submit => {
    submit.preventDefault()
    const response = await post('/answers', { prompt: view.$('input').value })
    if (!response.ok) return view.state('refused', await response.text())
    const { id } = await response.json()
    // All that has to survive a reload.
    history.replaceState(null, '', `#answer=${id}`)
    connect(id)
  })
  const [, id] = /^#answer=([\w-]+)$/.exec(location.hash) ?? []
  if (id) connect(id)
}

const board = () => {
  const view = card('board')
  const list = view.$('.notes')
  const by = pick(['Ada', 'Alan', 'Barbara', 'Dennis', 'Edsger', 'Grace', 'Katherine', 'Ken', 'Margaret', 'Radia'])
  const tab = `${by}-${Math.random().toString(36).slice(2)}`
  let source
  let gone = false
  let backAt = -Infinity

  const show = ({ by, text }, kind) => note(list, by, text, kind)
  // What was missed comes at once.
  const live = data => show(JSON.parse(data), performance.now() - backAt < 250 ? 'missed' : '')

  /** Reads the state, and then what has come after it. */
  const connect = async () => {
    const response = await ask('/board')
    joined(response.ok)
    if (!response.ok) return view.state('refused', await response.text())
    const { position, notes } = await response.json()
    list.replaceChildren()
    for (const each of notes) show(each)
    source = subscribe(`/board/events?${new URLSearchParams({ tab, lastEventId: position })}`, view, { note: live, 'stream-reset': reset })
    source.addEventListener('error', () => (gone = true))
    source.addEventListener('open', () => {
      if (gone) backAt = performance.now()
      gone = false
    })
  }
  /** Notes were missed that the hub does not have any more, so the state is read again. */
  const reset = async () => {
    source.close()
    await connect()
    if (source.readyState !== EventSource.CLOSED) note(list, 'stream-reset', 'too much was missed: the board was read anew', 'reset')
  }

  const joined = on => {
    for (const name of ['post', 'flood', 'cut']) view.button(name).disabled = !on
    join.textContent = on ? 'Leave' : 'Join'
  }
  const join = view.button('join', async () => {
    if (join.textContent === 'Leave') {
      source.close()
      view.state('idle', 'left')
      return joined(false)
    }
    join.disabled = true
    await connect().finally(() => (join.disabled = false))
  })
  view.button('cut', () => post(`/board/cut?tab=${tab}`))
  view.button('flood', async () => {
    for (let i = 1; i <= 30; i++) await post('/board', { by, text: `note ${i} of 30` })
  })
  view.$('form').addEventListener('submit', async submit => {
    submit.preventDefault()
    const input = view.$('input')
    const { value } = input
    input.value = ''
    const response = await post('/board', { by, text: value })
    if (response.ok) return
    input.value ||= value
    view.arrived(`POST ${response.status}`, await response.text(), true)
  })
  view.$('input').placeholder = `${by} says …`
  if (only === 'board') join.click()
}

const channels = () => {
  const view = card('channels')
  const list = view.$('.notes')
  const token = 'token-of-ada'
  let source
  const show = data => {
    const message = JSON.parse(data)
    note(list, message.channel_id ?? 'everyone', message.data)
  }
  const connect = () => {
    const query = new URLSearchParams({ token })
    for (const box of boxes) if (box.checked) query.append('channel_id', box.value)
    source?.close()
    source = subscribe(`/events?${query}`, view, { message: show })
  }
  const boxes = document.querySelectorAll('#channels [name=channel]')
  for (const box of boxes) box.addEventListener('change', () => source && connect())
  const listen = view.button('listen', () => {
    if (source) {
      source.close()
      source = undefined
      view.state('idle', 'left')
    } else connect()
    listen.textContent = source ? 'Leave' : 'Listen'
  })
  view.$('form').addEventListener('submit', async submit => {
    submit.preventDefault()
    const body = { data: view.$('[name=data]').value, channel_id: view.$('[name=to]').value || undefined }
    const response = await post('/send', body, { Authorization: `Bearer ${token}` })
    view.arrived(`POST ${response.status}`, await response.text(), !response.ok)
  })
}

const shutdown = () => {
  const view = card('shutdown')
  const answer = view.$('.answer')
  let leftAt
  const process = pid => {
    const restarted = leftAt !== undefined
    const command = document.createElement('code')
    command.textContent = `kill -TERM ${pid}`
    say(answer, `process ${pid}`, command)
    if (restarted) view.arrived('process', `${pid}, ${((performance.now() - leftAt) / 1_000).toFixed(1)} s later`)
    view.state('open', restarted ? 'restarted' : 'running')
    leftAt = undefined
  }
  const farewell = data => {
    leftAt = performance.now()
    view.arrived('farewell', data)
    view.state('connecting', 'coming back')
    say(answer, 'Farewell', 'Start the server again: this page comes back by itself.')
  }
  return { process, farewell }
}

const cards = { clock, progress, tokens, auth, resumable, board, channels }

if (only) {
  for (const element of document.querySelectorAll(`.card:not(#${only}), #counts`)) element.remove()
  cards[only]()
} else {
  for (const start of Object.values(cards)) start()
  const process = shutdown()
  whileVisible(() => counts(process))
}
